"""Text to token ids, with a model's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cappy_lite.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextEncoder:
    """A tokenizer.json, read so that text is only ever text: no special tokens, no truncation, no padding.

    Texts are encoded one at a time. The tokenizers library's batch call is a third faster, out of about a hundredth of
    the time that scoring takes; but it uses threads of its own, and versions before 0.23 then print a warning into
    every process that is forked later.
    """

    def __init__(self, path: Path, *, cls_token: str, sep_token: str) -> None:
        self._tokenizer = read_tokenizer(path)
        self.cls_id = self._token_id(path, cls_token)
        self.sep_id = self._token_id(path, sep_token)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, all of them."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _token_id(self, path: Path, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ModelError(f"{path} has no token {token!r}, which config.json names as special: export it again")
        return token_id


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file, without truncation and padding, and with no special tokens in texts.

    Raises:
        ModelError: it isn't one.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path} is not a tokenizer that this tokenizers version reads: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Without this, "[SEP]" in a text would become the token that ends it.
    tokenizer.encode_special_tokens = True
    return tokenizer
