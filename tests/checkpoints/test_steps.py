"""A checkpoint of a run by its step: RUN@500 on every command line, and the argument `step` in Python."""

import pytest

import camelid
from camelid import checkpoints
from camelid.checkpoints import reading
from camelid.errors import UserError
from camelid.launch.cli import main


def test_a_step_names_its_checkpoint_in_python_and_on_the_command_line(pretrained):
    assert camelid.load(pretrained, step=12).step == 12 and camelid.load(pretrained).step == 24
    assert checkpoints.open(f"{pretrained}@12").step == checkpoints.open(pretrained, step=12).step == 12
    assert checkpoints.open(f"{pretrained}/", step=24).folder == checkpoints.open(pretrained).folder
    assert checkpoints.open_tokenizer(f"{pretrained}@12").vocab_size == 352


def test_a_reward_model_may_be_that_of_a_step(reward_run):
    assert camelid.load_reward(reward_run, step=12).step == 12
    with pytest.raises(UserError, match="there is no checkpoint of step 6, only of 12;"):
        camelid.load_reward(reward_run, step=6)


def test_a_step_that_is_not_there_is_answered_with_those_that_are(pretrained, capsys):
    said = "there is no checkpoint of step 13, only of 12, 24; config.checkpoint.keep_every keeps more of them"
    with pytest.raises(UserError, match=f"{pretrained}@13: {said}"):
        camelid.load(pretrained, step=13)
    assert main(["generate", f"{pretrained}@13", "a"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (-1, r'step -1: give "best" or a number of steps, such as 500'),
        (True, 'step True: give "best"'),
        ("last", "step 'last': give \"best\""),
        (12.0, r'step 12\.0: give "best"'),
    ],
)
def test_what_is_no_step_is_refused(pretrained, step, message):
    with pytest.raises(UserError, match=message):
        camelid.load(pretrained, step=step)


def test_two_steps_and_a_step_of_what_is_no_run_are_refused(pretrained, corpus):
    with pytest.raises(UserError, match="names a step, and so does step=24: give only one of the two"):
        camelid.load(f"{pretrained}@12", step=24)
    with pytest.raises(UserError, match="tokenizer is no run directory, so it has no checkpoint of a step"):
        camelid.load(corpus / "tokenizer", step=3)
    with pytest.raises(UserError, match=r"nowhere is no run directory"):
        camelid.load("nowhere@3")


def test_a_folder_whose_name_looks_like_a_step_is_a_folder(tmp_path, pretrained):
    link = tmp_path / "run@12"
    link.symlink_to(pretrained)
    assert reading.run_and_step(link) is None and checkpoints.open(link).step == 24
    assert checkpoints.open(link, step=12).step == 12
