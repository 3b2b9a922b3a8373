"""Made-up personal data and things that look like it, drawn by seed, and sentences and code to put them into."""

import base64
import json
import random
import string
import uuid
from collections.abc import Callable
from datetime import date, timedelta

ALNUM = string.ascii_letters + string.digits
Draw = Callable[[random.Random], str]


def letters(draw: random.Random, count: int, alphabet: str = ALNUM) -> str:
    return "".join(draw.choices(alphabet, k=count))


def digits(draw: random.Random, count: int) -> str:
    return letters(draw, count, string.digits)


def luhn(body: str) -> str:
    """Digits with Luhn's check digit at the end."""
    total = 0
    for place, digit in enumerate(reversed(body)):
        n = int(digit) * (2 if place % 2 == 0 else 1)
        total += n // 10 + n % 10
    return body + str(-total % 10)


def identity_number(draw: random.Random) -> str:
    region = draw.choice(["11", "31", "44", "51", "32", "61"]) + digits(draw, 4)
    born = (date(1940, 1, 1) + timedelta(days=draw.randrange(27000))).strftime("%Y%m%d")
    body = region + born + digits(draw, 3)
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11]


def bank_card(draw: random.Random) -> str:
    prefix, length = draw.choice(
        [("4", 16), ("53", 16), ("37", 15), ("6222", 19), ("6217", 16), ("6011", 16), ("3530", 16)]
    )
    number = luhn(prefix + digits(draw, length - len(prefix) - 1))
    if length == 15:
        return draw.choice([number, f"{number[:4]} {number[4:10]} {number[10:]}"])
    separator = draw.choice(["", " ", "-"])
    return separator.join(number[i : i + 4] for i in range(0, length, 4))


def iban(draw: random.Random) -> str:
    country, body = draw.choice([("DE", digits(draw, 18)), ("GB", "WEST" + digits(draw, 14)), ("FR", digits(draw, 23))])
    numeric = "".join(str(int(letter, 36)) for letter in f"{body}{country}00")
    value = f"{country}{98 - int(numeric) % 97:02d}{body}"
    return draw.choice([value, " ".join(value[i : i + 4] for i in range(0, len(value), 4))])


def email(draw: random.Random) -> str:
    local = letters(draw, 1, string.ascii_lowercase) + letters(draw, draw.randint(2, 9))
    local += draw.choice(["", ".", "_", "+", "-"]) + letters(draw, draw.randint(2, 6), string.ascii_lowercase)
    host = letters(draw, draw.randint(3, 10), string.ascii_lowercase)
    return f"{local}@{host}.{draw.choice(['com', 'org', 'co.uk', 'com.cn', 'de', 'io', 'edu', 'museum', 'email'])}"


def phone_us(draw: random.Random) -> str:
    area, exchange = (
        f"{draw.randint(2, 9)}{draw.choice('02345678')}{draw.choice('02345678')}",
        f"{draw.randint(2, 9)}{digits(draw, 2)}",
    )
    line = digits(draw, 4)
    return draw.choice(
        [
            f"({area}) {exchange}-{line}",
            f"{area}-{exchange}-{line}",
            f"+1 {area} {exchange} {line}",
            f"{area}.{exchange}.{line}",
        ]
    )


def phone_international(draw: random.Random) -> str:
    a, b = draw.randint(1000, 9999), draw.randint(1000, 9999)
    return draw.choice(
        [
            f"+44 20 {a} {b}",
            f"+4479{a}{digits(draw, 4)}",
            f"+49 30 {a}{b}",
            f"+33 1 {a % 90 + 10} 23 {b % 90 + 10} 89",
            f"+81-3-{a}-{b}",
            f"+61 4{digits(draw, 2)} {a % 900 + 100} {b % 900 + 100}",
            f"+91 9{digits(draw, 4)} {a}3",
            f"+852 2{a % 900 + 100} {b}",
        ]
    )


def mobile_cn(draw: random.Random) -> str:
    number = f"1{draw.choice('3456789')}{digits(draw, 9)}"
    return draw.choice(
        [
            number,
            f"{number[:3]}-{number[3:7]}-{number[7:]}",
            f"{number[:3]} {number[3:7]} {number[7:]}",
            f"+86 {number}",
            f"+86-{number}",
        ]
    )


def landline_cn(draw: random.Random) -> str:
    area, line = draw.choice(["010", "021", "0755", "0571", "029"]), f"{draw.randint(2, 8)}{digits(draw, 7)}"
    return draw.choice([f"{area}-{line}", f"({area}){line}", f"{area} {line}", f"+86 {area}-{line}"])


def ssn(draw: random.Random) -> str:
    area = draw.choice([draw.randint(100, 665), draw.randint(667, 899)])
    return f"{area}-{draw.randint(1, 99):02d}-{draw.randint(1, 9999):04d}"


def ipv4(draw: random.Random) -> str:
    first = draw.choice([8, 13, 34, 52, 81, 104, 151, 185, 203, 212])
    return f"{first}.{draw.randint(1, 99)}.{draw.randint(1, 255)}.{draw.randint(1, 254)}"


def ipv6(draw: random.Random) -> str:
    groups = [letters(draw, 4, "0123456789abcdef") for _ in range(6)]
    return draw.choice(
        [
            f"2001:4{groups[0][1:]}:{':'.join(groups)}",
            f"2a02:{groups[0]}::{groups[1]}",
            f"2606:4700:{groups[0]}::{groups[1]}:{groups[2]}",
        ]
    )


def token(draw: random.Random) -> str:
    def part(content: dict) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    web_token = f"{part({'alg': 'HS256'})}.{part({'sub': digits(draw, 10)})}.{letters(draw, 43)}"
    pem = "\n".join(letters(draw, 64) for _ in range(4))
    return draw.choice(
        [
            "AKIA" + letters(draw, 16, string.ascii_uppercase + string.digits),
            f"{draw.choice(['ghp', 'gho', 'ghs'])}_{letters(draw, 36)}",
            f"github_pat_{letters(draw, 22)}_{letters(draw, 59)}",
            f"sk-{letters(draw, 48)}",
            f"sk-proj-{letters(draw, 40)}-{letters(draw, 30)}",
            f"sk-ant-api03-{letters(draw, 80)}",
            f"xoxb-{digits(draw, 12)}-{digits(draw, 12)}-{letters(draw, 24)}",
            f"glpat-{letters(draw, 20)}",
            f"AIza{letters(draw, 35)}",
            f"hf_{letters(draw, 34)}",
            f"sk_live_{letters(draw, 24)}",
            f"SG.{letters(draw, 22)}.{letters(draw, 43)}",
            f"npm_{letters(draw, 36)}",
            f"LTAI5t{letters(draw, 18)}",
            web_token,
            f"-----BEGIN RSA PRIVATE KEY-----\n{pem}\n-----END RSA PRIVATE KEY-----",
        ]
    )


def isbn(draw: random.Random) -> str:
    body = draw.choice(["978", "979"]) + digits(draw, 9)
    long = body + str(-sum(int(d) * (1, 3)[i % 2] for i, d in enumerate(body)) % 10)
    short = digits(draw, 9)
    short += "0123456789X"[sum(int(d) * (i + 1) for i, d in enumerate(short)) % 11]
    return draw.choice(
        [
            long,
            f"{long[:3]}-{long[3]}-{long[4:7]}-{long[7:12]}-{long[12]}",
            short,
            f"{short[0]}-{short[1:4]}-{short[4:9]}-{short[9]}",
        ]
    )


def version(draw: random.Random) -> str:
    four = ".".join(str(draw.randint(0, 40)) for _ in range(4))
    return draw.choice(
        [
            f"v{four}",
            f"version {four}",
            f"Chrome/{draw.randint(80, 120)}.0.{draw.randint(1000, 6000)}.{draw.randint(1, 200)}",
            f"numpy=={draw.randint(1, 2)}.{draw.randint(0, 26)}.{draw.randint(0, 9)}",
            f"tool/{four}",
            f"版本号：{four}",
            f"lib-{four}.jar",
            f"react@{draw.randint(1, 18)}.{draw.randint(0, 9)}.{draw.randint(0, 9)}",
        ]
    )


LOOKALIKES: dict[str, Draw] = {
    "version": version,
    "isbn": isbn,
    "hash": lambda d: letters(d, d.choice([32, 40, 64]), "0123456789abcdef"),
    "uuid": lambda d: str(uuid.UUID(int=d.getrandbits(128), version=4)),
    "timestamp": lambda d: d.choice(
        [
            str(d.randint(10**9, 2 * 10**9)),
            str(d.randint(10**12, 2 * 10**12)),
            f"20{d.randint(10, 25)}-{d.randint(1, 12):02d}-17T{d.randint(0, 23):02d}:15:42.{digits(d, 6)}+08:00",
            f"20{d.randint(10, 25)}{d.randint(1, 12):02d}{d.randint(1, 28):02d}{d.randint(0, 23):02d}3059",
        ]
    ),
    "price": lambda d: d.choice(
        [
            f"${d.randint(1, 999)},{digits(d, 3)}.99",
            f"¥{d.randint(10**6, 10**10)}",
            f"{d.randint(10**9, 2 * 10**10)}元",
            f"${d.randint(1, 10**6)}",
        ]
    ),
    "years": lambda d: f"{d.randint(1900, 1960)}-{d.randint(1961, 2020)}",
    "coordinates": lambda d: f"{d.randint(0, 89)}.{digits(d, 6)}, {d.randint(0, 179)}.{digits(d, 7)}",
    "doi": lambda d: f"10.{d.randint(1000, 99999)}/{digits(d, 7)}.{digits(d, 7)}",
    "url": lambda d: (
        f"https://{letters(d, 6, string.ascii_lowercase)}.com/{d.choice(['item', 'u', 'status'])}/"
        f"{d.choice([mobile_cn(d)[-11:].replace(' ', ''), digits(d, 19), luhn('4' + digits(d, 14))])}?p=2"
    ),
    "code": lambda d: d.choice(
        [
            f"x = {d.randint(13, 19)}{digits(d, 9)}",
            f"0x{letters(d, 16, '0123456789abcdef')}",
            f"out = (q@k.transpose(-2, -1))[{d.randint(1, 99)}:, ::2]",
            "@app.route('/a')",
            f"std::vector<a::b> v({digits(d, 3)})",
            "git@github.com:a/b.git",
            f"seed={d.randint(13, 19)}{digits(d, 9)}",
            f'{{"order_id": 1{d.randint(3, 9)}{digits(d, 9)}}}',
            f"sum += {digits(d, 10)} * 3",
        ]
    ),
    "time": lambda d: d.choice(
        [
            f"{d.randint(0, 23):02d}:{d.randint(0, 59):02d}:{d.randint(0, 59):02d}",
            ":".join(letters(d, 2, "0123456789ABCDEF") for _ in range(6)),
        ]
    ),
    "reserved_ip": lambda d: d.choice(
        [
            f"192.168.{d.randint(0, 255)}.{d.randint(0, 255)}",
            f"10.{d.randint(0, 255)}.0.{d.randint(1, 255)}",
            "127.0.0.1",
            "0.0.0.0",
            "255.255.255.0",
            f"203.0.113.{d.randint(1, 254)}",
            "::1",
            f"fe80::{letters(d, 4, '0123456789abcdef')}",
            "2001:db8::1",
        ]
    ),
    "wrong_identity": lambda d: (
        (n := identity_number(d))[:17]
        + str((int(n[17].replace("X", "0")) + d.randint(1, 8)) % 10 if n[17] != "X" else 3)
    ),
    "wrong_card": lambda d: (n := luhn("4" + digits(d, 14)))[:-1] + str((int(n[-1]) + d.randint(1, 9)) % 10),
    "order": lambda d: f"订单号{d.choice(['', '：'])}{d.randint(13, 19)}{digits(d, d.choice([9, 13, 16]))}",
    "placeholder_key": lambda d: d.choice(
        [
            "sk-" + "x" * 40,
            "YOUR_API_KEY",
            "<your-token>",
            "AKIAXXXXXXXXXXXXXXXX",
            "api_key = 'your_api_key_goes_here_1234'",
            f"sk-learn-{letters(d, 12, string.ascii_lowercase)}-{letters(d, 12, string.ascii_lowercase)}",
            f"sha256 = '{letters(d, 64, '0123456789abcdef')}'",
        ]
    ),
}
"""What has to stay, by kind."""

PERSONAL: dict[str, tuple[str, Draw]] = {
    "email": ("email", email),
    "phone, US": ("phone", phone_us),
    "phone, international": ("phone", phone_international),
    "phone, Chinese mobile": ("phone", mobile_cn),
    "phone, Chinese landline": ("phone", landline_cn),
    "ip, v4": ("ip", ipv4),
    "ip, v6": ("ip", ipv6),
    "key": ("key", token),
    "identity_number": ("identity_number", identity_number),
    "bank_card": ("bank_card", bank_card),
    "iban": ("iban", iban),
    "ssn": ("ssn", ssn),
}
"""What has to be masked: a name for tables, its kind, how it is drawn."""

SENTENCES = {
    "English": [
        "You can find it at {}, any day.",
        "{}",
        "It was {} (see page 12).",
        "Values: {}; 7; 12.5",
        "- {}\n- other\n",
        "We found {} on 3 May 2021.",
        "**{}**",
    ],
    "Chinese": [
        "我的是{}，请记下。",
        "{}",
        "他说：{}。",
        "（{}）已经登记了。",
        "资料如下：\n{}\n谢谢！",
        "共有3项，第一项是{}；第二项没有。",
    ],
    "code": [
        'value = "{}"',
        "print('{}')",
        '{{"a": 1, "value": "{}"}}',
        "# see {}\nx = 1",
        "<td>{}</td>",
        "curl -d '{}' localhost",
    ],
}
"""Where they are put, by context."""


def planted(draw: random.Random, context: str, make: Draw) -> tuple[str, str, str]:
    """What stands before a drawn value, the value, and what stands behind it."""
    before, after = (part.replace("{{", "{").replace("}}", "}") for part in draw.choice(SENTENCES[context]).split("{}"))
    return before, make(draw), after
