"""The options by which commands ask a model: what they may be together, and when an output is in the way."""

import time

import pytest

from camelid.curate.applying import RejectedRow
from camelid.errors import UserError
from camelid.launch.commands import asking
from camelid.launch.commands.arguments import Parser, command
from camelid.launch.commands.asking import add_teacher, asking_several, check_asking, is_url, tell_shortfall
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


def test_a_reply_that_takes_long_is_waited_for_with_a_line_now_and_then(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(asking, "SECONDS", 0.2)

    def write(messages):
        time.sleep(0.7 if messages[-1]["content"] == "slow" else 0)
        return "Yes."

    requests = [Request([{"role": "user", "content": content}]) for content in ("quick", "slow")]
    with misbehaving(write=write) as server:
        args = parsed(tmp_path, f"--teacher={server.url}", "--model=own", "--concurrency=1")
        check_asking(args, folder=True)
        with asking_several(args, [args.teacher]) as (asker,):
            asker.ask(requests)
            told = [line for line in capsys.readouterr().err.splitlines() if "replies of own after" in line]
            asker.ask(requests)  # from the journal
    assert 2 <= len(told) <= 4 and all("1 of 2 replies" in line for line in told)
    assert "after" not in capsys.readouterr().err


def test_an_endpoint_that_cannot_be_reached_leaves_no_journal(tmp_path):
    args = parsed(tmp_path, "--teacher=http://127.0.0.1:9")
    check_asking(args, folder=True)
    with pytest.raises(UserError, match="cannot be reached"), asking_several(args, [args.teacher]):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "out.journal").touch()  # of an earlier command: it stays
    with pytest.raises(UserError, match="cannot be reached"), asking_several(args, [args.teacher]):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out.journal"]


def test_fewer_rows_than_wanted_are_told_with_the_reason_that_took_most(capsys):
    rejected = [RejectedRow(None, "filters", reason) for reason in ("short", "long", "short")]
    tell_shortfall(1, 1000, "tasks", rejected, "give more seeds")
    line = "camelid: 1 of 1,000 tasks were kept; filters: short took most (2 of 3): give more seeds\n"
    assert capsys.readouterr().err == line
    tell_shortfall(0, 2, "tasks", [], "give more seeds")
    assert capsys.readouterr().err == "camelid: 0 of 2 tasks were kept: give more seeds\n"
    tell_shortfall(2, 2, "tasks", rejected, "give more seeds")
    assert capsys.readouterr().err == ""
