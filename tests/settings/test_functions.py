import importlib.util
from pathlib import Path

import camelid
from camelid.settings.functions import raised

CODE = """
import json

def outer():
    return inner()

def inner():
    return json.loads("{")
"""


def test_an_exception_is_told_with_the_first_line_of_the_users_code_wherever_it_lies(tmp_path):
    for folder in (tmp_path, Path(camelid.__file__).parent):  # also beside the package's own files, as in a checkout
        spec = importlib.util.spec_from_loader("mine", loader=None, origin=str(folder / "mine.py"))
        module = importlib.util.module_from_spec(spec)
        exec(compile(CODE, spec.origin, "exec"), module.__dict__)
        try:
            module.outer()
        except ValueError as error:
            assert raised(error.with_traceback(error.__traceback__.tb_next)) == (  # without this test's own frame
                "JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1) "
                f"({folder / 'mine.py'}, line 5)"
            )


def test_an_exception_without_a_users_code_is_told_alone():
    try:
        importlib.import_module("camelid.nothing")
    except ImportError as error:
        assert (
            raised(error.with_traceback(error.__traceback__.tb_next))
            == "ModuleNotFoundError: No module named 'camelid.nothing'"
        )
