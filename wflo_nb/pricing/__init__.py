"""What calls cost: usage → cost after a call, request → upper bound before it.

`book` finds and declares prices, `table` loads the slim price table of the wheel, `rates` is the arithmetic, `names` the many
spellings of providers and models, `litellm_map` reads litellm's price map without importing litellm.
Import from these modules; importing this package loads no table.
"""
