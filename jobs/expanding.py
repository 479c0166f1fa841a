"""The teacher writes further queries: round by round, each in storage before the next one is asked for."""

import logging
from concurrent.futures import ThreadPoolExecutor

from jobs.asking import make_settings
from jobs.budget import find_overrun
from jobs.data_config import CreateDataConfig
from jobs.data_plan import EXPANDED, Plan, Queries, Teacher
from raydistill.core import storage
from raydistill.core.answers import row_seed
from raydistill.core.errors import NotFoundError
from raydistill.core.patience import patiently, replace_patiently
from raydistill.core.records import TokenRequest, TokenResult, Usage
from raydistill.core.uris import join
from raydistill.dataset.appending import OpenLedger
from raydistill.queries.expand import Expansion, Reply, expand_queries, query_to_line
from raydistill.queries.plan import ExpansionRequest
from raydistill.queries.read import iter_queries
from raydistill.teacher.attempt import Attempts

logger = logging.getLogger(__name__)


def write_queries(plan: Plan, config: CreateDataConfig, teacher: Teacher, queries: Queries, ledger: OpenLedger) -> None:
    """Let the teacher write the queries that the plan is short of, into the dataset's folder.

    Args:
        plan: says how many.
        config: how to ask, and what for.
        teacher: that writes them.
        queries: those that are given, which are shown to it, and those that may not be resembled.
        ledger: the dataset's; its manifest says what was spent, but for a round that a kill cut short.

    Raises:
        BudgetError: the dataset has cost max_cost; what was written until then stays.
        QualityError: nothing new comes any more, and there are not enough.
        ConflictError: another create_data is writing to this dataset.
    """
    uri = join(plan.folder, EXPANDED)
    try:
        data, etag = patiently(lambda: storage.read(uri))
        written = list(iter_queries(uri))
    except NotFoundError:
        data, etag, written = b"", storage.ABSENT, []
    expansion = Expansion(plan.prompt, list(queries.given()), config.seed, config.expand)
    attempts = Attempts(teacher.handle, make_settings(config, teacher, num_actors=1))

    usages: list[Usage] = []  # of one round

    def ask(requests: list[ExpansionRequest]) -> list[Reply]:
        with ThreadPoolExecutor(config.concurrency) as threads:
            results = list(threads.map(lambda request: _ask(request, plan, config, attempts), requests))
        usages[:] = [result.usage for result in results]
        return [_read_reply(result, plan) for result in results]

    for found in expand_queries(expansion, written, len(written) + plan.num_short, ask, queries.apart()):
        data += "".join(map(query_to_line, found.kept)).encode()
        etag = replace_patiently(uri, data, etag)
        ledger.spend("queries", _sum_usages(usages))
        logger.info("queries: round %d brought %d new ones; %s", found.index, len(found.kept), found.rejected or "")
        if overrun := find_overrun(plan.folder, ledger.manifest, config):
            raise overrun


def _ask(request: ExpansionRequest, plan: Plan, config: CreateDataConfig, attempts: Attempts) -> TokenResult:
    """Return what the teacher gives for one request; P is not put in front of it."""
    renderer = plan.renderer
    (result,) = attempts.ask(
        [
            TokenRequest(
                tokens=renderer.build_generation_prompt(request.messages).to_ints(),
                max_tokens=config.expand.max_tokens,
                temperature=config.expand.temperature,
                seed=row_seed(request.id),
                stop_token_ids=renderer.get_stop_sequences(),
            )
        ]
    )
    return result


def _read_reply(result: TokenResult, plan: Plan) -> Reply:
    if result.error is not None or not result.tokens:
        return Reply("", error=result.error)
    return Reply(plan.renderer.parse_response(result.tokens)[0]["content"], truncated=result.finish_reason == "length")


def _sum_usages(usages: list[Usage]) -> dict[str, int]:
    return {
        "prompt": sum(usage.prompt_tokens for usage in usages),
        "cached": sum(usage.cached_tokens for usage in usages),
        "completion": sum(usage.completion_tokens for usage in usages),
    }
