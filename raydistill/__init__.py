"""Takes a long prompt and queries. Gives a student that answers without the prompt, and a client to sample it."""

from raydistill import renderers, types
from raydistill.client.service import PendingSample, SamplingClient, ServiceClient
from raydistill.core.lr import get_lr

__all__ = ["PendingSample", "SamplingClient", "ServiceClient", "get_lr", "renderers", "types"]
