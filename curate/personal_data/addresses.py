"""Mail addresses and IP addresses in a text.

A finder takes a text and yields where each value begins and ends, with the value in a form that is equal for equal
values. Patterns begin with a lookbehind, so that a long run of one character is read once.
"""

import ipaddress
import re
from collections.abc import Iterator
from typing import NamedTuple


class Found(NamedTuple):
    """A value in a text."""

    start: int
    """Index of its first character."""

    end: int
    """Index after its last character."""

    value: str
    """The value without separators and in one case."""


_LETTERS = "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u052f"  # Latin beyond ASCII, Greek, Cyrillic
_LOCAL = rf"(?<![\w{_LETTERS}.%+\-])[\w{_LETTERS}%+](?:[\w{_LETTERS}.%+\-]{{0,62}}[\w{_LETTERS}%+\-])?"
_LABEL = rf"[a-z0-9{_LETTERS}](?:[a-z0-9{_LETTERS}\-]{{0,61}}[a-z0-9{_LETTERS}])?"
_TOP = rf"(?:[a-z{_LETTERS}]{{2,24}}|xn--[a-z0-9\-]{{2,59}})"
_END = rf"(?![\w{_LETTERS}\-@(\[]|\.[a-z0-9{_LETTERS}])"
_EMAIL = re.compile(rf"({_LOCAL})(?:@\n?|%40)((?:{_LABEL}\.){{1,8}}({_TOP})){_END}", re.I | re.A)

_AT, _DOT = r"(?:\s?[\[({]\s?(?:at|@)\s?[\])}]\s?|\sat\s)", r"(?:\s?[\[({]\s?(?:dot|\.)\s?[\])}]\s?|\sdot\s|\.)"
_SPELLED = re.compile(
    rf"({_LOCAL}(?:{_DOT}[\w\-]{{1,32}})??){_AT}(?=[^\s@]{{1,63}}\s?[\[({{d])"
    rf"((?:{_LABEL}{_DOT}){{1,4}}(?:com|org|net|edu|gov|io|info|me|co|cn|uk|de|fr|jp|[a-z]{{2}})){_END}",
    re.I | re.A,
)

_NO_TOP_LEVEL = re.compile(
    "png|jpe?g|gif|svg|webp|bmp|ico|pdf|css|jsx?|tsx?|json|html?|xml|ya?ml|toml|csv|txt|exe|dll"
    "|transpose|permute|shape|mean|sum|view|reshape|inv|conj|real|imag|flatten|astype|dtype|size|weights?|bias|data"
    "|values?|grad|detach|numpy|matmul|diag|diagonal|ravel|squeeze|unsqueeze|contiguous|clone|todense|toarray|tolist"
    "|cpu|cuda|mark|method|fixture|parametrize|property|setter|getter|deleter|route|kernel|array|matrix|vector"
)
"""Ends of file names and of expressions of code, such as "icon@2x.png", "q@k.transpose" and "@pytest.mark"."""

_CODE_WORD = re.compile("self|cls|assert|return|print|yield|lambda|await|raise|def|class|import")
_COMMON_TOP = re.compile("com|org|net|edu|gov|mil|int|info|biz|[a-z]{2}")
"""Where a domain ends otherwise, such a word beside @ is code, as in "self@cls.method"."""

_IPV4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}(?![\w\-]|\.[a-z0-9])", re.A)
_PART_OF_WORD = re.compile(r"[\w.\-]$", re.A)
_IPV6 = re.compile(
    r"(?<![\w:.])(?=[0-9a-f:]{0,4}:)[0-9a-f:]{3,39}(?:\.\d{1,3}(?:\.\d{1,3}){2})?(?![\w:]|\.\d)", re.I | re.A
)
_VERSION_BEFORE = re.compile(
    r"(?:(?<![a-z])(?:v|ver|versions?|releases?|released|build|firmware|driver|rev|revision|update|upgrade|patch|section|sec"
    r"|chapter|clause|paragraph|step|figure|fig|table|oid)(?![a-z])[\s.:#=v_'\"]{0,6}(?:\w{1,10}\s)?"
    r"|(?<![a-z])(?:python|pypy|java|jdk|jre|node(?:\.?js)?|php|ruby|perl|rust|swift|kotlin|scala|\.net|framework|windows"
    r"|macos|ios|android|linux|ubuntu|debian|fedora|centos|kernel|chrome|chromium|firefox|safari|edge|opera|office|oracle"
    r"|database|mysql|mariadb|postgres(?:ql)?|sqlite|mongodb|redis|db2|websphere|weblogic|tomcat|nginx|openssl|photoshop"
    r"|acrobat|flash|unity|unreal|matlab|excel|word|outlook|exchange|sdk|app|software|library|package|plugin|client)"
    r"(?:\s[a-z]\w{0,14})?\s"
    r"|(?:版本|固件|韧体|韌體|驱动|驅動|更新|升级|升級|章节|章節|第|条款|條款|节|節|编号|編號)[\s:：v号號为為是到至了]{0,4}"
    r"|[=~<>!^]=\s?['\"]?|\w[\w.+\-:]{0,30}/|§\s?)$",
    re.I | re.A,
)
_NAMED_ADDRESS = re.compile(
    r"(?:\b|_)(?:ip|ipv4|ipv6|addr|address|host|hostname|server|dns|gateway)\w{0,8}['\"]?\s?[=:]{1,2}\s?['\"]?$",
    re.I | re.A,
)


def emails(text: str) -> Iterator[Found]:
    """Mail addresses (RFC 5321), with Latin, Greek and Cyrillic letters (RFC 6531). Other scripts have no spaces around
    an address, so their letters are no part of it. @ may be %40, and the domain may begin on the next line.

    Left alone are remotes such as git@host:path, versions such as package@1.2.3, names of image files, and products
    of matrices in code.
    """
    if "@" not in text and "%40" not in text:
        return
    for match in _EMAIL.finditer(text):
        local, domain, top = (part.lower() for part in match.groups())
        is_code = any(_CODE_WORD.fullmatch(word) for word in (local, domain.partition(".")[0]))
        if is_code and not _COMMON_TOP.fullmatch(top):
            continue
        if ".." in local or _NO_TOP_LEVEL.fullmatch(top) or len(domain) > 255:
            continue
        if local in ("git", "hg") and text[match.end() : match.end() + 1] in (":", "/"):
            continue
        yield Found(match.start(), match.end(), f"{local}@{domain}")


def spelled_emails(text: str) -> Iterator[Found]:
    """Mail addresses written out, such as "john at example dot com" and "john [at] example [dot] com"."""
    for match in _SPELLED.finditer(text):
        if not re.fullmatch(r"(?:the|me|us|it|look|looking|is|are|be|was|were|meet|only|and|or)", match[1], re.I):
            parts = re.sub(r"\W*\b(?:dot)\b\W*|[\s\[\](){}]+", ".", f"{match[1]}@{match[2]}".lower())
            yield Found(match.start(), match.end(), re.sub(r"\.{2,}", ".", parts))


def ip_addresses(text: str, reserved: bool) -> Iterator[Found]:
    """IPv4 and IPv6 addresses.

    Left alone are numbers of versions ("version 1.2.3.4", "Chrome/1.2.3.4", "tool==1.2.3.4") and of sections, times,
    MAC addresses, and names with "::" in code.

    Args:
      text: the text.
      reserved: whether addresses count that belong to nobody: private, loopback, link-local, multicast, documentation.
    """
    if text.count(".") >= 3:
        for match in _IPV4.finditer(text):
            if not _is_version(text, match.start(), match.end()):
                yield from _address(match.start(), match[0], reserved)
    if text.count(":") >= 2:
        for match in _IPV6.finditer(text):
            groups = [group for group in match[0].split(":") if group]
            is_loopback = reserved and match[0] == "::1"
            if is_loopback or (len(groups) >= 3 and any(len(group) != 2 for group in groups)):
                written = match[0] if match[0].endswith("::") else match[0].rstrip(":")
                yield from _address(match.start(), written, reserved)


def _address(start: int, written: str, reserved: bool) -> Iterator[Found]:
    """The address if it is one, and if it counts."""
    try:
        address = ipaddress.ip_address(written)
    except ValueError:
        return
    is_public = address.is_global and not address.is_multicast
    if address.version == 6 and is_public:
        is_public = int(address) >> 125 == 1  # 2000::/3 is all that is given out (RFC 4291, section 2.4)
    if reserved or is_public:
        yield Found(start, start + len(written), str(address))


def _is_version(text: str, start: int, end: int) -> bool:
    """Whether four numbers with points between them are the number of a version or of a section."""
    before = text[max(0, start - 40) : start]
    if _PART_OF_WORD.search(before):
        return True
    if _NAMED_ADDRESS.search(before):
        return False
    if _VERSION_BEFORE.search(before):
        return True
    if before.rpartition("\n")[2].strip(" #*>\t"):
        return False
    numbers = text[start:end].split(".")
    return all(len(number) < 3 for number in numbers) and bool(re.match(r"[ \t.、)]+\w", text[end : end + 5]))
