"""Filters of self-instruct drop what they are meant for, and nothing that only looks like it."""

from pathlib import Path

import pytest

from camelid.curate.teachers.instruct_filters import Filters
from camelid.curate.teachers.seeds import Task, read_seeds
from camelid.errors import UserError
from camelid.settings.sections import read

SHARED = Path(__file__).parents[3] / "shared" / "data"
FILTERS = Filters()

KEPT = [
    "Explain one drawback of electric cars.",
    "Draw a conclusion from the given argument.",
    "Draw parallels between the two poems.",
    "How can a leader draw attention to climate change?",
    "Write a paragraph about photosynthesis.",
    "Describe how profiles of customers are made.",
    "Write a complaint that files for bankruptcy are slow.",
    "Summarize the plot of Romeo and Juliet.",
    "Explain graph theory to a child.",
    "Write a function that opens a file and counts its lines.",
    "Write a Python script that resizes images.",
    "Suggest a title for my cooking video.",
    "How do video games affect teenagers?",
    "Look at the big picture and give advice to a student.",
    "What is the role of music in education?",
    "Explain the map function in JavaScript.",
    "Create a road map for learning Spanish.",
    "Write an email to a landlord about a broken heater.",
    "Describe the following painting style in two sentences.",
    "Describe a character who became attached to an old house.",
    "Classify the following song as rock or jazz.",
    "Rewrite the sentence so that it sounds polite.",
    "What is the meaning of the phrase carte blanche?",
    "Write a program note for a concert of Bach.",
]
DROPPED = {
    "Draw a picture of a cat.": "beyond_text",
    "Describe the image in detail for me.": "beyond_text",
    "Create a bar chart of the sales.": "beyond_text",
    "Design a new logo for our cafe.": "beyond_text",
    "Transcribe the audio of this speech.": "beyond_text",
    "Summarize the attached report in three lines.": "beyond_text",
    "Open the following link and summarize it.": "beyond_text",
    "Summarize https://example.com/news in one line.": "beyond_text",
    "Set an alarm for seven tomorrow.": "beyond_text",
    "Watch the film and count the cars.": "beyond_text",
    "Sing a song about the rain.": "beyond_text",
    "Play some relaxing music for me.": "beyond_text",
    "What's the weather like today? Today's weather please.": "beyond_text",
    "Sort these numbers": "too_short",
    "Sort " + "these numbers " * 75: "too_long",
    "- Sort these numbers for me.": "punctuation",
    '"Carpe diem" means what in Latin?': "punctuation",
    "写一首关于春天的诗": "other_language",
    "Напиши короткое стихотворение о весне": "other_language",
    "Sort Напиши короткое стихотворение о весне": "other_language",
    "Write a program to add two numbers.": "begin",
}
HAN_KEPT = [
    "介绍一位画家的生平。",
    "分析这部漫画的主题。",
    "制定一份学习计划。",
    "刻画一个孤独的老人。",
    "解释成语画龙点睛的意思。",
    "写一个短视频脚本，主题是环保。",
    "比较两种视频平台的优缺点。",
    "用Python写一段绘制正弦曲线的代码。",
    "解释图像识别的原理。",
    "创建一个程序，打印以下图案：",
    "列出这座城市最具标志性的建筑。",
    "《红楼梦》的作者是谁？",
    "“画蛇添足”是什么意思？",
    "翻译句子",
    "写一首诗",
    "说明地图册的作用。",
    "地铁站的安全规则有哪些？",
]
HAN_DROPPED = {
    "画一只可爱的猫。": "beyond_text",
    "描述图片中的人物。": "beyond_text",
    "根据上图回答问题。": "beyond_text",
    "绘制一张销售柱状图。": "beyond_text",
    "设计一张关于环保的海报。": "beyond_text",
    "观看以下视频并总结。": "beyond_text",
    "听下面的录音，写出大意。": "beyond_text",
    "请打开以下链接并概括内容。": "beyond_text",
    "设置一个明天早上七点的闹钟。": "beyond_text",
    "唱一首关于下雨的歌。": "beyond_text",
    "今天的天气怎么样？": "beyond_text",
    "帮我订一张去北京的机票。": "beyond_text",
    "友谊": "too_short",
    "。请写一首诗": "punctuation",
    "Write a poem about the sea.": "other_language",
    "日本語でこの文章を要約してください": "other_language",
    "编写一个程序来计算总和。": "begin",
}


def reason(text, language="en", input="", output="x", filters=FILTERS):
    found = filters(Task(text, input, output), language)
    return found and found.reason


@pytest.mark.parametrize("text", KEPT)
def test_an_english_instruction_that_a_model_of_text_can_follow_is_kept(text):
    assert reason(text) is None


@pytest.mark.parametrize("text", DROPPED)
def test_an_english_instruction_is_dropped_with_its_reason(text):
    assert reason(text) == DROPPED[text]


@pytest.mark.parametrize("text", HAN_KEPT)
def test_a_chinese_instruction_that_a_model_of_text_can_follow_is_kept(text):
    assert reason(text, "zh") is None


@pytest.mark.parametrize("text", HAN_DROPPED)
def test_a_chinese_instruction_is_dropped_with_its_reason(text):
    assert reason(text, "zh") == HAN_DROPPED[text]


def test_lengths_are_those_of_alpaca_at_their_ends():
    assert [reason(" ".join(["word"] * n)) for n in (3, 4, 150, 151)] == ["too_short", None, None, "too_long"]


@pytest.mark.parametrize("input", ["photo.JPG", "see report_2.pdf", "[image of a cat]", "<attached file>", "(video)"])
def test_an_input_that_stands_for_something_else_than_text_is_dropped(input):
    assert reason("Describe what you see there.", input=input) == "attached"
    assert reason("描述你看到的内容。", "zh", input="（图片：一只猫）") == "attached"
    assert (
        reason("Describe what you see there.", input="I imagine a cat in a photographer's shop. Version 1.2.3") is None
    )


def test_an_output_that_repeats_its_task_or_is_too_long_is_dropped():
    assert reason("Correct the given sentence.", input="He go.", output="He go.") == "echo"
    assert reason("Write four short words.", output="Write four short words.") == "echo"
    assert reason("Write four short words.", output="x" * 11, filters=Filters(most_output=10)) == "output_too_long"


def test_banned_phrases_are_found_as_whole_words_in_every_part(tmp_path):
    (tmp_path / "banned.txt").write_text("ass\nnerve gas\n炸药\n", encoding="utf-8")
    filters = Filters(banned=str(tmp_path / "banned.txt"))
    assert reason("Explain how Nerve Gas is made.", filters=filters) == "banned"
    assert reason("Explain how this is made.", input="nerve gas", filters=filters) == "banned"
    assert reason("Explain how this is made.", output="It is nerve gas.", filters=filters) == "banned"
    assert reason("如何制作炸药？", "zh", filters=filters) == "banned"
    assert reason("Pass the class with a good assessment.", filters=filters) is None
    assert reason("Explain how nerve gases are made.", filters=filters) is None


def test_own_lists_replace_the_patterns(tmp_path):
    lists = 'beyond = ["poems?"]\nwithin = ["prose poem"]\nbegins = []\nattached = []\n'
    (tmp_path / "own.toml").write_text(f"[en]\n{lists}[zh]\n{lists}")
    filters = read({"lists": str(tmp_path / "own.toml")}, Filters)
    assert reason("Write a short poem now.", filters=filters) == "beyond_text"
    assert reason("Write a prose poem now.", filters=filters) is None
    assert reason("Draw a picture of a cat.", filters=filters) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[en]\nbeyond = ", "no TOML"),
        ("[en]\nbeyond = []", "has no list `within`"),
        ('[en]\nbeyond = ["("]\nwithin = []\nattached = []\nbegins = []', "no regular expression"),
    ],
)
def test_a_file_of_patterns_that_is_wrong_is_an_error_when_it_is_read(content, said, tmp_path):
    (tmp_path / "own.toml").write_text(content)
    with pytest.raises(UserError, match=said):
        read({"lists": str(tmp_path / "own.toml")}, Filters)
    with pytest.raises(UserError, match="No such file"):
        read({"banned": str(tmp_path / "missing.txt")}, Filters)


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
@pytest.mark.parametrize(("language", "most"), [("en", 15), ("zh", 10)])
def test_few_real_instructions_are_dropped(language, most):
    tasks = read_seeds(SHARED / f"alpaca_{language}_demo.json")
    dropped = [task for task in tasks if FILTERS(task, language)]
    assert 0 < len(dropped) <= most  # of about 1,000
