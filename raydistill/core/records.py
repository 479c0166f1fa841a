"""The shapes a row takes on its way; every room speaks these and nothing else."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}

MIN_PROBE_SHIFT_NATS = 0.5  # below it bfloat16's own noise (0.2 nat a token on CPU) could pass for an adapter

DROP_REASONS = (  # in the order in which an answer is looked at
    "too_long",  # the prompt did not fit the teacher's context: not asked
    "failed",
    "truncated",
    "empty",
    "short_answer",
    "long_answer",
    "refused",
    "forbidden",
    "unmatched",
    "unparsable",
    "invalid",
    "unjudged",
    "low_score",
    "duplicate",
    "near_duplicate",  # a query that resembles another one: not asked
)


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, Unicode kept."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """Return the first 32 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Query:
    """What a user asks, without P. The last message is the user's."""

    id: str
    messages: list[Message]
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class TokenRequest:
    """One row for an engine: token ids in, sampling parameters, and which model is to answer.

    Attributes:
        tokens: prompt token ids; the engine never re-tokenizes.
        model: "" for the base model, else "name/alias" or "name/v0001" (a replica resolves it).
        max_tokens: at most this many completion tokens.
        temperature: 0 is greedy.
        stop_token_ids: token ids that end the completion; the ending token is returned with it.
        stop: strings that end the completion.
        ignore_eos: go on at the end-of-sequence token (the protocol's `stop: []`).
        top_logprobs: how many of the most likely tokens to report at each position; None for none.
        score_token_ids: report the log-probability of these ids at each position (at most 128).
    """

    tokens: list[int]
    model: str = ""
    max_tokens: int = 800
    temperature: float = 0.3
    top_p: float = 1.0
    top_k: int = -1
    seed: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    ignore_eos: bool = False
    top_logprobs: int | None = None
    score_token_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class TokenResult:
    """What an engine answered to one TokenRequest, or why it could not.

    Attributes:
        tokens: completion token ids, the stop token included.
        logprobs: raw (temperature 1) log-probability of each completion token, in nats.
        finish_reason: "stop", "length" or "error".
        model: the exact model that produced it: the base model's id, or "name/v0001@digest".
        top_ids: int32 [T, k], most likely first, when top_logprobs was asked; see core.topk.
        top_logprobs: float16 [T, k], the log-probabilities of top_ids.
        scores: [T, len(score_token_ids)] log-probabilities, when score_token_ids was asked.
    """

    tokens: list[int]
    logprobs: list[float]
    finish_reason: str
    usage: Usage
    model: str = ""
    latency_seconds: float = 0.0
    error: str | None = None
    error_code: str = ""  # "unknown_model" or "refused": the request's fault, its text may be shown; "unavailable"
    top_ids: "np.ndarray | None" = field(default=None, compare=False)  # arrays have no truth value, so no ==
    top_logprobs: "np.ndarray | None" = field(default=None, compare=False)
    scores: list[list[float]] | None = None


@dataclass(frozen=True)
class Answer:
    """The teacher's answer to one (query, sample), good or bad: one row of the ledger.

    Attributes:
        turn: which user turn of the query it answers, where every one is answered; else 0.
        messages: the query's, without P, up to the user's turn that is answered.
    """

    id: str
    query_id: str
    sample_index: int
    turn: int
    messages: list[Message]
    text: str
    tokens: list[int]
    finish_reason: str
    usage: Usage
    latency_seconds: float
    error: str | None = None
    top_ids: "np.ndarray | None" = field(default=None, compare=False)  # int32 [T, k]; see core.topk
    top_logprobs: "np.ndarray | None" = field(default=None, compare=False)  # float16 [T, k]


@dataclass(frozen=True)
class Example:
    """One training row: a conversation without P and the teacher's response."""

    id: str
    query_id: str
    messages: list[Message]
    response: str
    response_tokens: list[int] | None  # the stop token included; None where only text is known
    teacher: str = ""
    prompt_digest: str = ""
    top_ids: "np.ndarray | None" = field(default=None, compare=False)  # int32 [T, k] of response_tokens; see core.topk
    top_logprobs: "np.ndarray | None" = field(default=None, compare=False)  # float16 [T, k]


@dataclass(frozen=True)
class Drop:
    """One answer that is not in the dataset, or one query that was not asked, and why."""

    id: str | None  # the answer's; None where nothing was asked
    query_id: str
    sample_index: int
    reason: str  # one of DROP_REASONS
    detail: str = ""


@dataclass(frozen=True)
class Shard:
    """One Parquet object of a dataset."""

    uri: str  # relative to the dataset's folder
    rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a dataset holds. A reader goes by this and never by a listing."""

    fingerprint: str
    finished: bool
    prompt_digest: str
    teacher: dict[str, str]  # model, revision, tokenizer_digest, template_digest
    sampling: dict[str, Any]
    counts: dict[str, Any]  # asked, answered, kept, dropped {reason: n}
    tokens: dict[str, int]  # prompt, cached, completion: of the answers that were asked for
    shards: list[Shard] = field(default_factory=list)
    drops: list[Shard] = field(default_factory=list)
    answers: list[Shard] = field(default_factory=list)
    spent: dict[str, dict[str, int]] = field(default_factory=dict)  # as tokens, by part; see dataset.spending
    prices: dict[str, float | None] | None = None  # of a million tokens: input, cached_input, output
    cost: float | None = None  # of all that was spent, by these prices


@dataclass(frozen=True)
class FileEntry:
    """One file of a version."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ProbePoint:
    """One next-token check: a prefix, the recorded next token, and its log-probabilities in nats."""

    prefix: list[int]
    token: int
    base: float
    adapter: float


@dataclass(frozen=True)
class Version:
    """An immutable published adapter: `version.json`, written last."""

    name: str
    number: int
    base_model: str
    base_revision: str
    tokenizer: str
    renderer: str
    template_digest: str
    lora: dict[str, Any]  # rank, alpha, targets, modules (count of adapted modules)
    files: list[FileEntry]
    dataset_fingerprint: str
    prompt_digest: str
    metrics: dict[str, Any]
    probe: list[ProbePoint]
    verifiable: bool  # False: mean |adapter - base| of the probe is below 0.5 nat

    @property
    def label(self) -> str:
        """The number as people write it, like `v0001`."""
        return f"v{self.number:04d}"

    @property
    def content_digest(self) -> str:
        """A digest of the files, so that an engine id is never reused for other weights."""
        return digest([dataclasses.asdict(entry) for entry in self.files])[:12]


def to_json(record: Any) -> str:
    """Return a record as indented JSON text."""
    return json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False) + "\n"


def manifest_from_json(text: str | bytes) -> Manifest:
    """Return the Manifest that `to_json` wrote."""
    data = json.loads(text)
    for key in ("shards", "drops", "answers"):
        data[key] = [Shard(**shard) for shard in data[key]]
    data.setdefault("spent", {"answers": data["tokens"]})  # manifests of before do not tell the two apart
    return Manifest(**data)


def version_from_json(text: str | bytes) -> Version:
    """Return the Version that `to_json` wrote."""
    data = json.loads(text)
    data["files"] = [FileEntry(**entry) for entry in data["files"]]
    data["probe"] = [ProbePoint(**point) for point in data["probe"]]
    return Version(**data)
