"""Which queries the teacher is asked to write in one round of expansion."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from raydistill.core.errors import ConfigError
from raydistill.core.prompts import Prompt
from raydistill.core.records import Message, Query, digest
from raydistill.queries.config import ExpansionConfig, Kind
from raydistill.queries.pieces import Piece, cut_prompt
from raydistill.queries.wording import Brief, word_request

NUM_SHOWN = 4  # known queries that a request shows
REWORDED = ("rephrase", "translate")  # kinds that are made of a known query alone; never of one of these again
SURPLUS = 1.25  # of what is asked for; some of it is no query or says what another one says


@dataclass(frozen=True)
class ExpansionRequest:
    """One thing the teacher is asked to write queries for.

    Attributes:
        id: a digest of all the rest, from which the sampling seed comes.
        kind: of the queries that are asked for.
        origin: what was shown: names of pieces of P and ids of known queries.
        round_index: of the round, from 0.
        messages: what the teacher sees; P as a whole is not put in front of it.
        num_queries: how many it is asked for.
    """

    id: str
    kind: Kind
    origin: tuple[str, ...]
    round_index: int
    messages: list[Message]
    num_queries: int


def plan_round(
    prompt: Prompt,
    known: Sequence[Query],
    num_wanted: int,
    seed: int,
    round_index: int,
    config: ExpansionConfig,
) -> list[ExpansionRequest]:
    """Return the requests of one round; the same arguments give the same requests.

    Args:
        prompt: P, of which each request shows a piece.
        known: the queries that may be shown, rephrased and translated; none where there is only P.
        num_wanted: how many queries are missing.
        seed: of the choice of pieces, queries and languages.
        round_index: from 0; it makes the rounds differ.
        config: the `expand` table.

    Raises:
        ConfigError: none of the kinds in config.shares is possible.
    """
    desk = _Desk(prompt, known, config, random.Random(digest(["expand", seed, round_index])))
    num_requests = min(config.requests_per_round, math.ceil(SURPLUS * num_wanted / config.queries_per_request))
    requests = []
    for kind in desk.deal_kinds(num_requests):
        brief, origin = desk.make_brief(kind)
        messages = word_request(brief)
        identifier = digest({"messages": messages, "seed": seed, "round": round_index, "number": len(requests)})
        requests.append(ExpansionRequest(identifier, kind, origin, round_index, messages, brief.num_queries))
    return requests


class _Desk:
    """What requests are made of. Pieces are taken in turn, so that no rule of P is left out."""

    def __init__(self, prompt: Prompt, known: Sequence[Query], config: ExpansionConfig, rng: random.Random) -> None:
        pieces = cut_prompt(prompt)
        by_kind = {kind: [piece for piece in pieces if piece.kind == kind] for kind in ("section", "rule", "shot")}
        sections = by_kind["section"] or by_kind["shot"]
        self._config = config
        self._rng = rng
        self._opening = by_kind["section"][0] if by_kind["section"] else None
        self._sections = rng.sample(sections, len(sections))
        rules = by_kind["rule"] or sections
        self._rules = rng.sample(rules, len(rules))
        single = [query for query in known if len(query.messages) == 1]
        self._sources = [query for query in single if query.metadata.get("kind") not in REWORDED]
        self._examples = single or known  # the last words of a conversation mean little alone
        self._shots = by_kind["shot"]

    def deal_kinds(self, num_requests: int) -> list[Kind]:
        """Return a kind for each request, by their shares."""
        possible: dict[Kind, float] = {}
        for kind, share in self._config.shares.items():
            if share > 0 and self._is_possible(kind):
                possible[kind] = share
        if not possible:
            wanted = ", ".join(self._config.shares)
            raise ConfigError(
                f"expand.shares: of the kinds {wanted} none is possible: rephrase and translate need queries of one "
                "message, translate needs expand.languages. Give queries, or other kinds a share."
            )
        total = sum(possible.values())
        kinds: list[Kind] = []
        for kind, share in possible.items():
            kinds.extend(itertools.repeat(kind, math.floor(num_requests * share / total)))
        kinds += self._rng.choices(list(possible), list(possible.values()), k=num_requests - len(kinds))
        self._rng.shuffle(kinds)
        return kinds

    def _is_possible(self, kind: Kind) -> bool:
        if kind in REWORDED:
            return bool(self._sources) and (kind == "rephrase" or bool(self._config.languages))
        return bool(self._sections)

    def make_brief(self, kind: Kind) -> tuple[Brief, tuple[str, ...]]:
        """Return what one request is about, and the names of what it shows."""
        number = self._config.queries_per_request
        if kind == "rephrase":
            source = self._rng.choice(self._sources)
            return Brief(kind, number, shown=[source.messages[-1]["content"]]), (source.id,)
        if kind == "translate":
            sources = self._rng.sample(self._sources, min(number, len(self._sources)))
            texts = [source.messages[-1]["content"] for source in sources]
            language = self._rng.choice(self._config.languages)
            return Brief(kind, len(texts), shown=texts, language=language), tuple(source.id for source in sources)
        piece = _take(self._rules if kind == "edge_case" else self._sections)
        opening = "" if self._opening in (None, piece) else self._opening.text
        shown = {} if kind == "adversarial" else self._choose_shown(piece)
        return Brief(kind, number, opening, piece.text, list(shown.values())), (piece.name, *shown)

    def _choose_shown(self, piece: Piece) -> dict[str, str]:
        """Return texts of known queries by id, or where there are none of P's shots by name."""
        if self._examples:
            chosen = self._rng.sample(self._examples, min(NUM_SHOWN, len(self._examples)))
            return {query.id: query.messages[-1]["content"] for query in chosen}
        shots = [shot for shot in self._shots if shot is not piece]
        return {shot.name: shot.question for shot in self._rng.sample(shots, min(NUM_SHOWN, len(shots)))}


def _take(pieces: list[Piece]) -> Piece:
    """Return the first piece and put it behind the others."""
    pieces.append(pieces.pop(0))
    return pieces[-1]
