"""Requests without a client's library, and what the server counts."""

import json
import time
import urllib.error
import urllib.request

ASKED = [{"role": "user", "content": "Which colour has the fox? 狐狸"}]


def ask(url, path, body=None, **headers):
    """Status, headers and JSON of a plain request."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": "Bearer secret"} | headers
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, headers)) as response:
            return response.status, response.headers, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.load(error)


def counters(url):
    """The numbers of `/metrics` by name and labels."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def wait_until_free(url, seconds=20):
    """Returns once no answer has a row or waits for one; fails after some seconds."""
    until = time.monotonic() + seconds
    names = [f'camelid:num_requests_{state}{{model_name="nano"}}' for state in ("running", "waiting")]
    while any((found := counters(url))[name] for name in names):
        assert time.monotonic() < until, {name: found[name] for name in names}
        time.sleep(0.05)
