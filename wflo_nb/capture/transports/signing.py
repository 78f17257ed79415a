"""Requests whose bytes are signed (AWS Signature Version 4): changing one would make the provider refuse them.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

from __future__ import annotations


def is_signed(authorization: object) -> bool:
    """Whether an ``authorization`` header is a signature over the request."""
    text = authorization.decode("latin-1") if isinstance(authorization, bytes) else authorization
    return isinstance(text, str) and text.startswith("AWS4-")
