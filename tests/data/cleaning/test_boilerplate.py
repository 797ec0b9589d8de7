"""Lines of a page that are not its text; sentences with the same words in them stay."""

import pytest

from data.cleaning.boilerplate import Boilerplate
from data.cleaning.rule import Dropped

RULE = Boilerplate()


@pytest.mark.parametrize(
    ("line", "neighbour"),
    [
        ("Read more »", "Read more books, he said."),
        ("Click here to subscribe", "Click here to see what the button that we built yesterday does."),
        ("Share this on Facebook", "Share this bread with the others."),
        ("Share this:", "Share this: it is good advice."),
        ("Facebook | Twitter | Instagram", "Facebook and Twitter were founded in 2004 and 2006."),
        ("Skip to main content", "Skip to my Lou, my darling"),
        ("Sign in / Register", "Sign in blue ink."),
        ("← Previous post", "The previous post was vacant."),
        ("12 comments", "12 comments were read aloud."),
        ("Related articles", "Related articles of clothing"),
        ("Subscribe to our weekly newsletter", "Subscribe to our view or not, it stands."),
        ("Privacy Policy | Terms of Use | Contact us", "A privacy policy binds the firm."),
        ("We use cookies to improve your experience on this site. Accept all cookies?", "We ate cookies on this site."),
        ("Home > News > Sports > Tennis > Blog", "Home > everything else"),
        ("Home | About us | Contact", "x | y | z"),
        ("Home | News | x", "Home | News"),
        ("Copyright © 2020 The Times Company", "The copyright of 1925 has run out."),
        ("© 2001–2024 Foo Ltd. All rights reserved.", "All rights are equal."),
        ("阅读全文 >>", "他阅读全文之后睡着了。"),
        ("上一篇：如何做饭", "上一篇文章谈到了如何做饭。"),
        ("返回顶部", "他返回顶部的营地。"),
        ("分享到：微信 微博 QQ空间", "他把苹果分享到每个人手里。"),
        ("登录 / 注册", "登录月球的那一年"),
        ("扫描二维码关注我们", "扫描仪坏了。"),
        ("责任编辑：张三", "责任编辑是一个职位。"),
        ("本网站使用cookie，继续浏览即表示您接受cookie政策", "奶奶做的cookie很好吃。"),
        ("版权所有 © 某某公司", "版权归作者。"),
        ("京ICP备12345678号-1", "他有三个备用号码。"),
        ("首页 | 新闻 | 体育 | 财经", "首页 | 其他"),
        ("Post", "Post:"),  # a name in a play
        ("Advertisement", "Advertisement is an art."),
    ],
)
def test_the_line_goes_and_its_neighbour_stays(line, neighbour):
    assert RULE(f"Before.\n{line}\nAfter.") == "Before.\nAfter."
    text = f"Before.\n{neighbour}\nAfter."
    assert RULE(text) is text


def test_a_long_line_is_text():
    notice = "Copyright © 2020 " + "x" * 60
    assert Boilerplate(max_line=len(notice))(f"a\n{notice}") == "a"
    assert Boilerplate(max_line=len(notice) - 1)(f"a\n{notice}") == f"a\n{notice}"


def test_blank_lines_beyond_two_go():
    assert RULE("a\n\n\nb") == "a\n\n\nb"
    assert RULE("a\n\n \n\n\nb\n\n\n\n") == "a\n\n \nb\n\n"
    assert Boilerplate(max_blank_lines=0)("a\n\nb") == "a\nb"


def test_a_page_of_boilerplate_alone_goes():
    assert RULE("Home\nRead more\nLog in\n") == "Home\n"
    assert RULE("Read more\nLog in\n") == Dropped("empty", "nothing is left of 17 characters")


def test_books_have_none(test_data):
    for name in ("gutenberg/1342.txt", "zh_novels/西游记.txt", "wikitext2/valid.txt", "tinyshakespeare/input.txt"):
        text = test_data(name).read_text(encoding="utf-8")
        rule = Boilerplate(max_blank_lines=len(text))
        assert rule(text) is text
