"""The verb of an instruction and the noun that it acts on, by rules for orders, without a parser.

    root_of("Please write a short story about a fox.", "en")     ("write", "story")
    root_of("写一个关于狐狸的短故事。", "zh")                       ("写", "故事")

Self-instruct (arXiv:2212.10560, section 3.3) takes the root of a constituency parse and its direct object. Here an
order's verb is its first word after words of courtesy, or the first verb after an introduction such as "Given a list,".
What the rules cannot do: questions have no verb; a verb that stands elsewhere, as in "I would like to know", is not
found; an object after a subordinate clause is missed; of two orders in a sentence the first counts.
"""

import functools
import re

from .. import words


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


COURTESY = re.compile(
    r"^(?:(?:please|kindly|now|then|also|first|next|just|ok|okay|hi|hello|hey|let's|task|instruction)\b[\s,:!]*"
    r"|(?:can|could|will|would) you(?: please| kindly| help(?: me)?(?: to)?)?\s+"
    r"|(?:i want|i need|i would like|i'd like|we need|we want) you to\s+"
    r"|(?:you have|you need|your (?:task|job) is) to\s+"
    r"|help me(?: to)?\s+|try to\s+|you (?:must|should|are to|are asked to) )+",
    re.IGNORECASE,
)
"""What may stand before the verb of an English order."""

FUNCTION = _words(
    """
    a an the this that these those my your our their his her its some any each every all both no another other such
    i you he she it we they me us him them who whom whose which what when where why how if whether because since
    while and or but nor so yet for of in on at by to from with without within about above below into onto over
    under between among through during before after until against across along around like as than per via using
    based is are was were be been being am do does did has have had can could will would shall should may might must
    not there here given suppose imagine assume considering according regarding let's let
    """
)
"""English words that are no verb of an order, and that end the noun phrase after one."""

DETERMINERS = _words(
    """
    a an the this that these those my your our their his her its some any each every all both no another other such
    me us him them yourself one two three four five six seven eight nine ten several many few more following given
    first second third last next
    """
)
"""English words with which the noun phrase after a verb begins, and that are not its head."""

VERBS = _words(
    """
    add adapt analyse analyze answer apply arrange assess brainstorm build calculate categorise categorize change
    check choose cite classify combine come compare compile complete compose compute conduct construct continue
    convert correct count craft create critique debug deduce define delete derive describe design detect determine
    develop devise differentiate discuss distinguish divide draft edit elaborate eliminate estimate evaluate examine
    expand explain explore express extract fill find fix form format formulate generate get give guess highlight
    identify implement improve include infer insert interpret invent join judge label list locate look make map
    match merge modify name offer order organise organize outline paraphrase pick plan predict prepare present
    produce proofread propose prove provide put rank rate read rearrange recognise recognize recommend reconstruct
    reduce remove rename reorder rephrase replace reply report respond restate restructure return reverse review
    revise rewrite say script search select separate sequence show simplify solve sort specify split state suggest
    sum summarise summarize synthesise synthesize take tell think transcribe transform translate turn unscramble
    update use verify visualise visualize write contrast
    """
)
"""Frequent verbs of English instructions, which are looked for after an introduction and "to"."""

_WORD = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*|\d[\d.,]*|[^\sA-Za-z\d]")


def root_of(instruction: str, language: str) -> tuple[str, str | None] | None:
    """The verb of an instruction and its noun, or None in place of the noun; None if no verb is found.

    Args:
      instruction: the instruction.
      language: "zh" for Chinese; the rules for English apply to all others.
    """
    return _chinese(instruction) if language == "zh" else _english(instruction)


def _english(text: str) -> tuple[str, str | None] | None:
    for clause in re.split(r"[.!?;:\n]+(?:\s|$)", text.strip())[:3]:
        found = _WORD.findall(COURTESY.sub("", clause.strip(" \"'*-")))
        for place, word in enumerate(found):
            lower = word.lower()
            is_first = place == 0 and word.isalpha() and lower not in FUNCTION
            after = place > 0 and found[place - 1] == "," and lower in VERBS
            if (is_first and (lower in VERBS or _begins_object(found[1:]))) or after:
                rest = found[place + 1 :]
                if len(rest) > 1 and rest[0] == "and" and rest[1].lower() in VERBS:
                    rest = rest[2:]  # compare and contrast
                return lower, _object(rest[_particles(rest) :])
    return None


def _particles(rest: list[str]) -> int:
    """Number of words that belong to a verb such as "come up with" or "fill in"."""
    if not rest or rest[0].lower() not in ("up", "out", "in", "down", "off", "over"):
        return 0
    return 2 if len(rest) > 1 and rest[1].lower() == "with" else 1


def _begins_object(rest: list[str]) -> bool:
    """Whether words may follow the verb of an order: a determiner, a question word or a preposition, but no verb."""
    return bool(rest) and rest[0].lower() in DETERMINERS | {"how", "what", "why", "which", "whether", "in", "on", "to"}


def _object(rest: list[str]) -> str | None:
    """The last word of the noun phrase with which words begin, in the singular."""
    head = None
    for word in rest:
        lower = word.lower()
        if head is None and (lower in DETERMINERS or not word[0].isalpha()) and word not in ",.;:!?()":
            continue
        if lower in FUNCTION or not word[0].isalpha() or lower.endswith("ly") or (head and lower.endswith("ing")):
            break
        head = lower
    return head and _singular(head)


def _singular(noun: str) -> str:
    for end, other in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("xes", "x")):
        if noun.endswith(end) and len(noun) > len(end) + 1:
            return noun.removesuffix(end) + other
    return noun[:-1] if noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and len(noun) > 3 else noun


CHINESE_VERBS = _words(
    """
    写 编写 撰写 写出 写下 列出 列举 描述 解释 说明 阐述 介绍 分析 比较 对比 总结 概括 归纳 摘要 翻译 改写 重写 重新
    改编 修改 修正 编辑 润色 校对 纠正 更正 续写 扩写 缩写 补充 补全 完成 填写 填空 填充 生成 创建 创作 创造 制定
    制作 设计 构建 构造 建立 提供 给出 提出 建议 推荐 提议 回答 解答 计算 求 求解 解决 证明 推断 推理 预测 估计 判断
    判定 确定 识别 辨别 鉴定 鉴别 找出 找到 查找 寻找 选择 选出 挑选 分类 归类 排序 排列 整理 重组 重排 转换 转化
    转变 变换 替换 插入 添加 删除 移除 提取 抽取 合并 拆分 组合 简化 优化 改进 评估 评价 评论 讨论 探讨 辩论 论述
    定义 命名 造句 朗读 背诵 讲述 讲 讲解 告诉 编造 想象 模拟 扮演 规划 计划 准备 安排 实现 验证 检查 区分 举例 举出
    指出 陈述 表达 表述 起草 草拟 拟定 复述 调整 标注 标记 突出 研究 调查 搜索 阅读 匹配 猜 猜测 思考 概述 刻画
    作 拟 取 找 了解
    """
)
"""Frequent verbs of Chinese instructions; jieba tags many of them as nouns where they stand first."""

CHINESE_COURTESY = _words(
    """
    请 请问 你 您 帮 帮我 帮忙 帮助 我 给 为 麻烦 能 能否 能不能
    可以 可否 需要 要 想 希望 让 试着 尝试 现在 首先 然后 再
    给定 假设 已知 深入 使用 利用 用
    """
)
"""What may stand before the verb of a Chinese order."""

DISPOSAL = {"把", "将"}
"""Chinese words that put the object before the verb."""

PURPOSE = {"来", "并", "并且", "以便", "从而", "用来", "用于", "使", "让"}
"""Chinese words that end the object of a verb."""


def _chinese(text: str) -> tuple[str, str | None] | None:
    for clause in re.findall(r"[^，。；！？：\n,;!?:]+[？?]?", text.strip())[:3]:
        if clause[-1] in "？?":
            continue
        found = [(each.word, each.flag) for each in _tagger().cut(clause)]
        verb = next((i for i in range(len(found)) if _known(found, i)), None)
        begin = next((i for i, (word, _) in enumerate(found) if word not in CHINESE_COURTESY), None)
        if verb is None and begin is not None and found[begin][1] in ("v", "vn") and not _is_attribute(found, begin):
            verb = begin
        if verb is not None:
            before = next((i for i in range(verb) if found[i][0] in DISPOSAL), None)
            span = found[verb + 1 :] if before is None else found[before + 1 : verb]
            span = span[: next((i for i, (word, _) in enumerate(span) if word in PURPOSE and i), None)]
            nouns = [word for word, flag in span if flag[0] == "n" or flag in ("vn", "eng")]
            return _known(found, verb) or found[verb][0], nouns[-1] if nouns else None
    return None


def _known(found: list[tuple[str, str]], i: int) -> str | None:
    """The verb of CHINESE_VERBS that a word is, also with a complement as in 翻译成; None if it is none, or describes a
    noun."""
    word = found[i][0]
    bare = word[:-1] if len(word) > 2 and word[-1] in "成为出到" else word
    return next((each for each in (word, bare) if each in CHINESE_VERBS and not _is_attribute(found, i)), None)


def _is_attribute(found: list[tuple[str, str]], i: int) -> bool:
    """Whether a word stands before 的 and describes a noun."""
    return i + 1 < len(found) and found[i + 1][0] == "的"


@functools.cache
def _tagger():
    """jieba's tagger on the dictionary of `words`, without a cache in the folder for temporary files."""
    segmenter = words.segmenter()
    import jieba.posseg

    return jieba.posseg.POSTokenizer(segmenter)
