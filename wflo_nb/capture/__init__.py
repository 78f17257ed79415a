"""Seeing the calls: below every SDK, at the HTTP transports.

`transports/` meet the libraries, `formats/` read the wire, `exchange.py` follows one call, `gate.py` holds the one policy.
"""
