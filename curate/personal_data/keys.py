"""Keys, tokens and passwords in a text, by the prefixes and shapes that their issuers publish.

The shapes of detect-secrets' plugins are used for the tokens in PLUGINS. Its other plugins do not serve here: those for
JWTs and OpenAI miss signatures and newer keys, that for private keys finds the first line alone, and those for
passwords and random strings take hashes for secrets.
"""

import base64
import functools
import importlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator

from ...errors import UserError
from .addresses import Found

PLUGINS = {
    "github_token:GitHubTokenDetector": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    "gitlab_token:GitLabTokenDetector": (
        "glpat-",
        "gldt-",
        "glft-",
        "glsoat-",
        "glrt-",
        "GR1348941",
        "glcbt-",
        "glptt-",
    ),
    "slack:SlackDetector": ("xox", "hooks.slack.com"),
    "stripe:StripeDetector": ("k_live_",),
    "twilio:TwilioKeyDetector": ("AC", "SK"),
    "sendgrid:SendGridDetector": ("SG.",),
    "pypi_token:PypiTokenDetector": ("pypi-",),
    "telegram_token:TelegramBotTokenDetector": (":AA",),
    "square_oauth:SquareOAuthDetector": ("sq0csp",),
    "azure_storage_key:AzureStorageKeyDetector": ("AccountKey=",),
    "mailchimp:MailchimpDetector": ("-us",),
}
"""Module and class of plugins of detect-secrets, each with strings of which a text that holds its tokens has one."""

_PREFIXED = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"(?:A3T[A-Z0-9]|ABIA|ACCA|AKIA|ASIA)[0-9A-Z]{16}"  # AWS, access key id
    r"|AIza[\w\-]{35}|ya29\.[\w\-]{20,400}|GOCSPX-[\w\-]{28}"  # Google
    r"|github_pat_\w{22,100}|hf_[A-Za-z0-9]{30,40}|npm_[A-Za-z0-9]{36}|r8_[A-Za-z0-9]{37}"
    r"|sk-(?:[a-z0-9]{2,10}-){0,3}[\w\-]{20,200}|gsk_[A-Za-z0-9]{40,60}|xai-[A-Za-z0-9]{60,90}|pplx-[A-Za-z0-9]{40,60}"
    r"|[srp]k_(?:live|test)_[A-Za-z0-9]{16,120}|whsec_[A-Za-z0-9+/=]{32,64}"  # Stripe
    r"|xapp-\d-[A-Z0-9]{8,14}-\d{8,16}-[a-z0-9]{32,80}|xox[a-z]-[\w\-]{20,250}"  # Slack
    r"|LTAI[A-Za-z0-9]{12,20}|AKID[A-Za-z0-9]{13,40}"  # Alibaba Cloud, Tencent Cloud
    r"|shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}|dop_v1_[a-f0-9]{64}|dapi[a-f0-9]{32}|lin_api_[A-Za-z0-9]{32,48}"
    r"|PMAK-[a-f0-9]{24}-[a-f0-9]{34}|NRAK-[A-Z0-9]{27}|key-[a-f0-9]{32}"
    r")(?![A-Za-z0-9_])",
    re.A,
)
_PREFIXES = (
    *("A3T", "ABIA", "ACCA", "AKIA", "ASIA", "AIza", "ya29.", "GOCSPX-", "github_pat_", "hf_", "npm_", "r8_", "sk-"),
    *("gsk_", "xai-", "pplx-", "k_live_", "k_test_", "whsec_", "xapp-", "xox", "LTAI", "AKID", "shp", "dop_v1_"),
    *("dapi", "lin_api_", "PMAK-", "NRAK-", "key-"),
)
"""Of which a text has one where `_PREFIXED` matches."""

_JWT = re.compile(r"(?<![\w.\-])eyJ[\w\-]{8,4000}\.(eyJ[\w\-]{4,8000})\.[\w\-]{16,2000}(?![\w\-])", re.A)
_PEM = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----(?P<body>(?:[^\-]|-(?!----)){0,20000})"
    r"(?:-----END (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----)?"
)
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/=]{16,}(?:\s|\\[nr])*){3}|[A-Za-z0-9+/=]{60}")
_PASSWORD_IN_URL = re.compile(
    r"(?<![a-z0-9])[a-z][a-z0-9+.\-]{1,20}://[\w.%+\-]{0,64}:(?P<secret>[^\s/:@\"'<>{}$\[\]]{3,100})@(?=[\w\[])",
    re.I | re.A,
)
_BEARER = re.compile(r"\bBearer (?P<secret>[\w\-.~+/]{20,2000}={0,2})", re.A)
_BASIC = re.compile(r"\bBasic (?P<secret>[A-Za-z0-9+/]{8,2000}={0,2})(?![\w\-])", re.A)
_STRING = re.compile(r"[A-Za-z0-9+/_\-]{20,}={0,2}", re.A)
_EXPRESSION = re.compile(r"[(\[]|\.\w")
"""What follows the beginning of an expression."""
_SECRET_NAME = re.compile(
    r"(?:(?:api[_\- ]?key|secret|token|passwd|password|pwd|(?:access|private|auth)[_\- ]?key|credentials?"
    r"|密[钥鑰码碼]|令牌)[\w\-]{0,16}[\"'`]?\s{0,2}(?::=|=>|[:=：]|\bis\s|[是为為])"
    r"|(?:api|access|secret|private|auth)[_\- ]?key\s)\s{0,2}[\"'`]?$",
    re.I | re.A,
)


def keys(text: str) -> Iterator[Found]:
    """Private keys in PEM, JSON web tokens, API keys and tokens by prefix, passwords in URLs and authorization headers,
    and random strings that are assigned to a name such as api_key or password.

    Placeholders such as sk-xxxxxxxx and YOUR_API_KEY are left alone, and so are hashes under other names.

    Raises UserError where detect-secrets is needed and not installed.
    """
    if "PRIVATE KEY" in text:
        for match in _PEM.finditer(text):
            if _BASE64.search(match["body"]):
                yield _found(match)
    if "eyJ" in text:
        yield from (_found(match) for match in _JWT.finditer(text) if _is_json(match[0].partition(".")[0]))
    if any(prefix in text for prefix in _PREFIXES):
        yield from (
            _found(match) for match in _PREFIXED.finditer(text) if _is_random(match[0], 3, digits=match[0][:3] == "sk-")
        )
    for name, hints in PLUGINS.items():
        if any(hint in text for hint in hints):
            yield from (
                _found(match) for shape in _plugin(name) for match in shape.finditer(text) if _stands_alone(match)
            )
    if "://" in text:
        yield from (_found(match, "secret") for match in _PASSWORD_IN_URL.finditer(text))
    if "Bearer " in text:
        yield from (_found(match, "secret") for match in _BEARER.finditer(text) if _is_random(match["secret"], 3))
    if "Basic " in text:
        yield from (_found(match, "secret") for match in _BASIC.finditer(text) if b":" in _decoded(match["secret"]))
    for match in _STRING.finditer(text):
        if len(match[0]) < 200 and _is_random(match[0], 3.2) and _is_assigned(match):
            yield _found(match)


def _is_assigned(match: re.Match) -> bool:
    """Whether a string is the value of a name such as api_key or password, and not the beginning of an expression."""
    before = match.string[max(0, match.start() - 60) : match.start()]
    return not _EXPRESSION.match(match.string, match.end()) and bool(_SECRET_NAME.search(before))


def _found(match: re.Match, group: str | int = 0) -> Found:
    return Found(*match.span(group), match[group])


def _stands_alone(match: re.Match) -> bool:
    """Whether a match is not a piece of a longer word. The shapes of plugins do not ask."""
    before, after = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    return not any(letter.isascii() and letter.isalnum() for letter in (before, after))


def _is_random(value: str, bits: float, *, digits: bool = True) -> bool:
    """Whether a string is no placeholder and the entropy of its characters is that high, in bits.

    digits: whether it has to have letters and at least two digits.
    """
    if digits and (sum(map(str.isdigit, value)) < 2 or not any(map(str.isalpha, value))):
        return False
    if re.search(r"x{6}|X{6}|0{8}|(?i:your|example|placeholder|dummy|replace|changeme)|123456789|abcdefgh", value):
        return False
    counts = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts) >= bits


def _is_json(part: str) -> bool:
    """Whether a part of a JSON web token is an object of JSON in base64url (RFC 7519)."""
    try:
        return isinstance(json.loads(_decoded(part)), dict)
    except ValueError:
        return False


def _decoded(part: str) -> bytes:
    """What stands in base64 or base64url, with or without padding; b"" if it is neither."""
    try:
        return base64.urlsafe_b64decode(part.replace("+", "-").replace("/", "_").rstrip("=") + "==")
    except ValueError:
        return b""


@functools.cache
def _plugin(name: str) -> tuple[re.Pattern, ...]:
    """The shapes of a plugin's tokens."""
    module, _, kind = name.partition(":")
    try:
        return tuple(getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), kind).denylist)
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith("detect_secrets"):
            raise
        raise UserError("personal_data needs detect-secrets: pip install 'camelid[curate]'") from None
