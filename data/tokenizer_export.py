"""A tokenizer's files as transformers reads them: with a `tokenizer_config.json` and the chat template beside it."""

import json
from typing import Any

from etils import epath

from .templates import ChatTemplate
from .tokenizer import CONFIG_FILE, HUGGINGFACE_FILE, TEMPLATE_FILE, Tokenizer


def save_for_transformers(tokenizer: Tokenizer, template: ChatTemplate | None, directory: epath.PathLike) -> None:
    """Writes the tokenizer into a folder from which transformers' AutoTokenizer gives the same tokens.

    A configuration that came with the tokenizer stays as it is; one that it lacks is made. The template replaces the
    tokenizer's own.
    """
    directory = epath.Path(directory)
    tokenizer.save(directory)
    config = json.loads((directory / CONFIG_FILE).read_text()) if (directory / CONFIG_FILE).exists() else {}
    config = _config(tokenizer, is_fast=(directory / HUGGINGFACE_FILE).exists()) | config
    config.pop("chat_template", None)
    if template is not None:
        source = with_bos(template, tokenizer)
        (directory / TEMPLATE_FILE).write_text(source)
        config["chat_template"] = source  # transformers before 4.43 looks here only
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False))


def with_bos(template: ChatTemplate, tokenizer: Tokenizer) -> str:
    """The source of a template that begins a conversation with bos itself: outside camelid nobody puts it in front."""
    text = template.render([{"role": "user", "content": "a"}], tokenizer)
    if tokenizer.bos_id is None or text.startswith(tokenizer.piece(tokenizer.bos_id)):
        return template.source
    return "{{ bos_token }}" + template.source


def _config(tokenizer: Tokenizer, *, is_fast: bool) -> dict[str, Any]:
    """What transformers must be told of a tokenizer that its model file does not say."""
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "unk_token": tokenizer.unk_id}
    spellings = {i: spelling for spelling, i in tokenizer.special.items()}
    named = {name: spellings.get(i) for name, i in ids.items() if i is not None and i in spellings}
    if is_fast:
        return {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    return {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": tokenizer.bos_id is not None,
        "add_eos_token": False,
        "legacy": False,
        "unk_token": "<unk>",
        **named,
    }
