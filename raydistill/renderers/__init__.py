"""Takes chat messages or token ids. Gives the other, in the form that one tokenizer's model was trained on."""

from raydistill.renderers.render import ChatRenderer, RawRenderer, Renderer, get_renderer
from raydistill.renderers.tokenizer import load_tokenizer, tokenizer_digest

__all__ = ["ChatRenderer", "RawRenderer", "Renderer", "get_renderer", "load_tokenizer", "tokenizer_digest"]
