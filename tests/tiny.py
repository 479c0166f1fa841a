"""A tiny random Llama with its own tokenizer, made on the spot: real enough for transformers, peft and vllm."""

from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "My order has not arrived yet, please tell me where the parcel is.",
    'Answer with one line of JSON: {"team": "billing", "urgency": "high"}.',
    "system user assistant messages query prompt teacher student adapter replica",
]
VOCAB_SIZE = 384


def make_tiny_tokenizer(folder: str | Path, vocab_size: int = VOCAB_SIZE) -> str:
    """Save a byte-level BPE tokenizer with a ChatML template; returns the folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(str(folder))
    return str(folder)


def make_tiny_model(folder: str | Path, seed: int = 0, dtype: str = "float32", scale: float = 0.2) -> str:
    """Save a random Llama (hidden 128, 2 layers, 4 heads of 32, 2 of them for keys and values) and its tokenizer.

    Args:
        folder: where; made where it is missing.
        seed: of the weights; the same seed gives the same weights in every dtype, up to rounding.
        dtype: "float32" or "bfloat16", of the saved weights and of config.json.
        scale: standard deviation of the weights; 0.2 gives distributions that are far from uniform.

    Returns:
        The folder, as text.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    make_tiny_tokenizer(path)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=scale,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(str(path), safe_serialization=True)
    return str(path)


def make_other_tiny_model(folder: str | Path) -> str:
    """Save a model of another family: fewer merges, another template and another end of turn; returns the folder."""
    from transformers import AutoTokenizer

    path = make_tiny_model(folder, seed=1)
    make_tiny_tokenizer(path, vocab_size=300)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<|im_start|>", "## ").replace("<|im_end|>", "<|endoftext|>")
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(path)
    return path
