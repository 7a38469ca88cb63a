"""Would a folder's tokenizer be another one if its configuration named another class?

Loaders choose the tokenizer's class by the model's type too, so that the same files can give different tokens.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from personality.manifests.errors import IncompatibleError
from personality.model import load_tokenizer

_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "tekken.json", "tokenizer_config.json")
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"}
_TEXTS = (
    "Hello, world! It's 12,345.67 o'clock — isn't it?",
    "  two spaces\tand a tab\n\n\nthree lines   \r\n end ",
    "Grüße aus Köln, naïve café; Ελληνικά, Русский язык, 日本語のテキスト、한국어, العربية, हिन्दी",
    "def f(x: int) -> str:\n    return f'{x:>10}'  # snake_case, camelCase, HTTPServer2\n",
    "👩‍👩‍👧‍👦 🇩🇪 e\u0301 é ﬁ ½ ² \u00a0\u200b\ufeff",
    "",
)
_CHAT = [{"role": "user", "content": "Hello there."}, {"role": "assistant", "content": " Good day. "}]
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def tokenizer_difference(folder: Path, config: Mapping[str, Any]) -> str:
    """What would differ, in words; empty when the same texts give the same tokens, or there is no tokenizer.

    Args:
        folder: a model folder.
        config: what its config.json would be.
    """
    if not any((folder / name).is_file() for name in _FILES):
        return ""  # some classes make an empty tokenizer of nothing
    try:
        before = load_tokenizer(folder)
    except IncompatibleError:
        return ""
    with tempfile.TemporaryDirectory(prefix="persona-") as made:
        beside = Path(made)
        for path in folder.iterdir():
            if path.suffix not in _WEIGHTS and path.name != "config.json":
                (beside / path.name).symlink_to(path.absolute(), target_is_directory=path.is_dir())
        (beside / "config.json").write_text(json.dumps(config), encoding="utf-8")
        try:
            after = load_tokenizer(beside)
        except IncompatibleError as error:
            return error.message.replace(made, "the new folder")
    for text in (*_TEXTS, "".join(before.all_special_tokens)):
        if before(text)["input_ids"] != after(text)["input_ids"]:
            return f"{text[:20]!r} gives other tokens"
        ids = before(text, add_special_tokens=False)["input_ids"]
        if before.decode(ids) != after.decode(ids):
            return f"the tokens of {text[:20]!r} are decoded differently"
    for name in _IDS:
        if getattr(before, name, None) != getattr(after, name, None):
            return f"`{name}` is {getattr(after, name, None)}, not {getattr(before, name, None)}"
    if bool(before.chat_template) != bool(after.chat_template):
        return "one has a chat template"
    if before.chat_template:
        chats = [_rendered(tokenizer) for tokenizer in (before, after)]
        if chats[0] != chats[1]:
            return "chats are rendered differently"
    return ""


def _rendered(tokenizer: Any) -> str:
    try:
        return str(tokenizer.apply_chat_template(_CHAT, tokenize=False))
    except Exception as error:  # a template may refuse this chat; it must then refuse it in both
        return f"{type(error).__name__}: {error}"
