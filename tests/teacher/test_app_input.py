"""What a Serve config file says is checked where the application is built: what is missing is named, nothing starts."""

import pytest

from raydistill.core.errors import ConfigError, NotFoundError
from raydistill.serving import app as student
from raydistill.teacher import app as teacher


@pytest.mark.parametrize("app", [teacher, student], ids=["teacher", "student"])
def test_a_config_file_that_names_a_missing_model_says_which(app, tmp_path):
    args = {"model": str(tmp_path / "gone")} | ({"storage": str(tmp_path)} if app is student else {})
    with pytest.raises(NotFoundError, match="gone"):
        app.build(args)


@pytest.mark.parametrize("app", [teacher, student], ids=["teacher", "student"])
def test_a_config_file_with_a_misspelt_key_says_the_nearest(app, model_dir):
    with pytest.raises(ConfigError, match=r"max_num_seq .*did you mean max_num_seqs"):
        app.build({"model": model_dir, "max_num_seq": 4})
