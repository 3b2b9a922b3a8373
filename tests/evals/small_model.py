"""A small LLaMA in Hugging Face's format with a tokenizer of bytes, made from numpy's frozen random numbers."""

import json
from pathlib import Path

import safetensors.numpy
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from camelid.tests.model.golden import make_llama

CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CASE = make_llama.PLAIN | dict(
    vocab_size=len(CONTROL) + 256,
    num_key_value_heads=2,
    max_position_embeddings=320,
    bos_token_id=0,
    eos_token_id=1,
    tie_word_embeddings=False,
)


def tokenizer() -> Tokenizer:
    """Bytes as tokens; every text begins with <s>."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: i for i, token in enumerate([*CONTROL, *letters])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


def write_model(folder: Path) -> Path:
    """Writes the model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32"} | CASE
    (folder / "config.json").write_text(json.dumps(config))
    ends = [CONTROL.index("</s>"), CONTROL.index("<|im_end|>")]
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": ends}))
    safetensors.numpy.save_file(make_llama.weights(CASE), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer().save(str(folder / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    described |= {"pad_token": "</s>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return folder
