"""What users say in `[student]` and `[teacher]` reaches the front and Serve."""

from raydistill.engine.args import deployment_options
from raydistill.engine.config import EngineConfig
from raydistill.engine.front import Limits
from raydistill.engine.ingress import make_ingress


def test_every_setting_of_the_front_becomes_its_limit():
    front = {
        "max_body_kib": 7,
        "max_waiting": 5,
        "retry_after_seconds": 11,
        "request_timeout_seconds": 13,
        "cors_origins": ["https://example.org"],
    }
    config = EngineConfig.model_validate({"front": front, "max_num_seqs": 3, "num_replicas": 2})
    application = make_ingress("engine", None, config)
    limits = application._bound_deployment.init_args[1]
    assert limits == Limits(None, 7 * 1024, 2 * (3 + 5), 13, 11, ("https://example.org",), may_sleep=False)


def test_every_setting_of_autoscaling_reaches_serve():
    scaling = {
        "min_replicas": 0,
        "max_replicas": 4,
        "initial_replicas": 1,
        "target_ongoing_requests": 5,
        "upscale_delay_seconds": 6,
        "downscale_delay_seconds": 7,
    }
    config = EngineConfig.model_validate({"autoscaling": scaling})
    assert deployment_options(config, drains=False)["autoscaling_config"] == {
        "min_replicas": 0,
        "max_replicas": 4,
        "initial_replicas": 1,
        "target_ongoing_requests": 5,
        "upscale_delay_s": 6,
        "downscale_delay_s": 7,
    }
    assert make_ingress("engine", None, config)._bound_deployment.init_args[1].may_sleep


def test_a_replica_whose_engine_is_gone_is_given_up_within_seconds():
    options = deployment_options(EngineConfig.model_validate({}), drains=False)
    assert 3 * options["health_check_period_s"] <= 5, "Serve gives up after three failed checks"
