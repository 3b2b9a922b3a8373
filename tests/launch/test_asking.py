"""The options by which commands ask a model: what they may be together, and when an output is in the way."""

import pytest

from camelid.errors import UserError
from camelid.launch.commands.arguments import Parser, command
from camelid.launch.commands.asking import add_teacher, asking_several, check_asking, is_url
from camelid.serve.journal import Request
from camelid.tests.serve.misbehaving import misbehaving

HELLO = Request([{"role": "user", "content": "hello"}])


def parsed(tmp_path, *words):
    actions = Parser(prog="camelid").add_subparsers(dest="action", required=True, parser_class=Parser)
    parser = command(actions, "make", None, "Makes something.")
    parser.add_argument("--output", required=True)
    add_teacher(parser)
    return actions.choices["make"].parse_args([f"--output={tmp_path / 'out'}", *words])


@pytest.mark.parametrize(
    "path, told",
    [
        ("http://localhost:8000", True),
        ("HTTPS://api.example.com/v1", True),
        ("large=https://api.example.com/v1", True),
        ("org/large=https://api.example.com/v1", True),
        ("https://api.example.com/v1?to=https://other.example", True),
        ("runs/https://x", False),
        ("runs/sft", False),
    ],
)
def test_an_endpoint_is_told_from_a_path(path, told):
    assert is_url(path) is told


def test_options_are_refused_where_nothing_reads_them(tmp_path):
    args = parsed(tmp_path, "--teacher=x", "--concurrency=2")
    check_asking(args, folder=True)
    with (
        pytest.raises(UserError, match="--concurrency=2 does nothing without an endpoint"),
        asking_several(args, ["x"]),
    ):
        pass
    args = parsed(tmp_path, "--teacher=x", "--batch_size=2")
    check_asking(args, folder=True)
    urls = ["http://localhost:1", "a=http://localhost:2"]
    with pytest.raises(UserError, match="--batch_size=2 does nothing with"), asking_several(args, urls):
        pass


def test_each_endpoint_is_asked_for_the_model_before_its_address_or_that_of_the_option(tmp_path, capsys):
    with misbehaving() as server:
        args = parsed(tmp_path, f"--teacher={server.url}", "--model=own", "--prompt_price=1000000")
        check_asking(args, folder=True)
        with asking_several(args, [args.teacher, f"org/large={server.url}"]) as askers:
            assert [asker.name for asker in askers] == ["own", "org/large"]
            assert [asker.ask([HELLO])[0].text for asker in askers] == ["olleh", "olleh"]
        assert [body["model"] for body in server.bodies] == ["own", "org/large"]
    assert "2 replies, 10 tokens of prompts and 10 of answers; the replies cost 10.0000" in capsys.readouterr().err


def test_an_output_that_exists_is_repeated_from_its_journal_and_never_extended(tmp_path):
    with misbehaving() as server:
        out, teacher = tmp_path / "out", f"--teacher={server.url}"
        out.mkdir()  # an empty folder is no output

        def asked(*words):
            args = parsed(tmp_path, teacher, "--model=own", *words)
            check_asking(args, folder=True)
            with asking_several(args, [args.teacher]) as (asker,):
                return asker.ask([HELLO])[0].text

        assert asked() == "olleh"
        (out / "rows").write_text("")
        assert asked() == "olleh" and len(server.asked) == 1
        with pytest.raises(UserError, match="lacks replies for another"):
            asked("--model=other")
        with pytest.raises(UserError, match="it has no journal"):
            asked(f"--journal={tmp_path / 'none'}")
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="a file, not a folder"):
            asked(f"--output={tmp_path / 'file'}")
