"""What stands on a page around its text: banners, buttons, navigation, notices; in English and Chinese."""

import re
from dataclasses import dataclass
from typing import ClassVar

from data.cleaning.rule import COUNT, Dropped, mended, require

_SITES = "facebook|twitter|x|linkedin|pinterest|whatsapp|reddit|instagram|youtube|telegram|tumblr|rss|e-?mail|print"
_PAGES = (
    r"privacy policy|terms (?:of (?:use|service)|(?:and|&) conditions)|cookie (?:policy|settings|preferences)"
    r"|contact us|about us|site ?map"
)
_BETWEEN = r"[\s,|/·•]+"
_ENTER = r"(?:log|sign)[ -]?(?:in|out|up)"
_CN_SITES = "微信|微博|新浪微博|朋友圈|qq空间|qq|空间|豆瓣|抖音"

# Each is matched against a whole line in lower case, without the white space, arrows, bars and dots around it.
_LINES = (
    # Buttons and links
    r"(?:click here )?(?:to )?(?:read|learn|see|view|show|find out|load|discover)(?: the)?"
    r" (?:more|less|full (?:article|story|post))(?: (?:here|posts|articles|stories|comments|results))?",
    r"continue reading|keep reading|click here(?: (?:to|for)(?: \w+){1,5})?",
    r"(?:share|tweet|pin|post|print|e-?mail|save|like|reply|comment|follow)(?: this)?(?: (?:page|post|article|story))?"
    rf"(?: (?:us )?(?:on|to|via|with|by) (?:friends?|{_SITES}))?|follow us|(?:share|like) this:",
    rf"(?!x$)(?:{_SITES})(?:{_BETWEEN}(?:{_SITES}))*",
    r"(?:skip|jump) to (?:the )?(?:main )?(?:content|navigation|search|footer)",
    r"(?:back|return) to (?:the )?(?:top|home(?:page)?)",
    rf"{_ENTER}(?:(?: or |{_BETWEEN})(?:{_ENTER}|register))?|my account|add to cart",
    r"(?:previous|next|older|newer)(?: (?:page|post|article|story|entries|posts))?|(?:toggle|main) (?:navigation|menu)",
    r"(?:\d+|no|leave a|add a|post a|view|show) (?:comments?|repl(?:y|ies)|responses?)",
    r"related (?:posts|articles|stories)|you may also like|trending now|loading(?: more)?|please wait",
    r"(?:sponsored )?advertisements?|sponsored(?: content)?",
    r"(?:subscribe|sign up)(?: now| today)?"
    r"(?: (?:to|for) (?:our|the|my) (?:\w+ ){0,3}(?:newsletter|mailing list|channel|feed))?",
    rf"(?:{_PAGES})(?:{_BETWEEN}(?:{_PAGES}|help|home))*",
    r"(?:accept|reject|allow|decline)(?: all)?(?: cookies)?|i (?:agree|accept)|got it|enable javascript",
    r"(?:点击|点此|点这里)?(?:查看|阅读|展开|显示|了解|加载)(?:更多|全文|原文|详情|全部)(?:内容|评论|文章)?",
    r"阅读原文|更多(?:内容|精彩|资讯)?|(?:上|下)一(?:篇|页|章|条)(?:[:：].{0,60})?|(?:首|末|尾)页",
    r"返回(?:顶部|首页|列表|目录)|回到顶部|加入收藏|设为首页",
    rf"分享(?:到|至)?[:：]?\s*(?:(?:{_CN_SITES})[\s、,，]*)*|点赞|收藏|转发|评论|举报|打赏",
    r"(?:登录|注册|登陆)(?:[\s/|]*(?:登录|注册))?|(?:发表|我要|写|查看)评论",
    r"相关(?:阅读|推荐|文章|新闻)|猜你喜欢|热门(?:推荐|文章|评论)",
    r"(?:长按|扫描|扫一扫|识别).{0,20}二维码.{0,20}|(?:欢迎)?(?:扫码)?关注(?:我们|.{0,20}(?:公众号|微信号|微博))",
    r"(?:责任编辑|责编|本文来源|文章来源)[:：].{0,30}|广告",
    r"(?:关于|联系)我们(?:[\s|·]+.{0,40})?|免责声明|隐私政策|用户协议|网站地图",
    # Notices of copyright and registration
    r"(?:copyright )?(?:©|\(c\)|copyright) ?(?:©|\(c\))? ?(?:by )?(?:\d{4}|.{1,60}\d{4}).{0,120}",
    r".{0,120}all rights reserved.{0,40}|(?:powered|proudly powered|hosted|designed) by .{1,40}",
    r"(?:版权所有|著作权所有).{0,80}|.{0,60}(?:版权所有|保留所有权利).{0,60}",
    r".{0,60}未经.{0,10}(?:授权|许可|允许).{0,10}(?:不得|禁止|请勿|严禁)转载.{0,60}",
    r".{0,40}icp备\d{5,10}号(?:-\d+)?.{0,60}|.{0,10}公网安备 ?\d{10,16}号?",
)
_LINE = re.compile("|".join(f"(?:{pattern})" for pattern in _LINES))
_EDGES = " \t\r\f\v\u3000\xa0|·•*–—-_<>«»‹›→←↑↓▲▼►◄…[]【】"  # what dresses up a button
_CONSENT = re.compile(
    r"\b(?:we|site|website|page|service) uses? (?:\w+ ){0,4}cookies"
    r"|\b(?:accept|reject|manage|allow|enable) (?:\w+ ){0,2}cookies|\buse of cookies"
    r"|\bcookie (?:policy|settings|preferences|notice|consent)\b"
    r"|(?:使用|接受|同意|管理|启用).{0,15}cookies?|cookies?.{0,6}(?:政策|设置)"
)
_NAVIGATION = re.compile(r"\s*(?:[|»›·•>/]|::)\s*|\s{2,}")
_MENU = """
    home,about,about us,contact,contact us,news,blog,shop,store,products,services,faq,help,support,login,log in,sign in,
    sign up,register,search,sitemap,privacy,privacy policy,terms,terms of use,careers,press,archive,categories,tags,
    events,gallery,forum,forums,downloads,my account,首页,新闻,关于我们,联系我们,产品,产品中心,服务,论坛,博客,登录,注册,
    帮助,搜索,下载,图片,视频,财经,体育,娱乐,科技,军事,汽车,房产
"""
_MENU_WORDS = {word.strip() for word in _MENU.split(",")}


@dataclass(frozen=True)
class Boilerplate:
    """Takes out whole lines that belong to a page and not to its text, and blank lines beyond `max_blank_lines`.

    A line goes where all of it is a button or link ("Read more »", "阅读全文"), a share bar, a banner about cookies, a
    menu (three entries or more, most of them the usual words), a notice of copyright or registration. Lines of more
    than `max_line` characters always stay, and so do sentences that such words are only a part of.
    """

    name: ClassVar[str] = "boilerplate"
    source: ClassVar[str] = "lines as in Kohlschütter et al. 2010, Boilerplate Detection Using Shallow Text Features"

    max_line: int = 200  # characters; longer lines are text
    max_blank_lines: int = 2  # in a row; two are what source code has between functions

    def __post_init__(self):
        require(self, COUNT, "max_line", "max_blank_lines")

    def __call__(self, text: str) -> str | Dropped:
        lines = text.split("\n")
        kept: list[str] = []
        blank = 0
        for line in lines:
            blank = blank + 1 if not line or line.isspace() else 0
            if blank > self.max_blank_lines or (not blank and len(line) <= self.max_line and _is_boilerplate(line)):
                continue
            kept.append(line)
        return mended(text, text if len(kept) == len(lines) else "\n".join(kept))


def _is_boilerplate(line: str) -> bool:
    plain = line.strip(_EDGES).lower()
    if not plain:
        return False
    if _LINE.fullmatch(plain) or ("cookie" in plain and _CONSENT.search(plain)):
        return True
    entries = [entry for entry in _NAVIGATION.split(plain) if entry]
    return len(entries) >= 3 and 2 * sum(entry in _MENU_WORDS for entry in entries) > len(entries)
