"""What content is, and how chat messages become token spans.

Content comes in as text, chat messages or raw ids, is checked once here, rendered through the
model's chat format, and read back as messages. Nothing here stores or encodes a gist.
"""

from megacontext_sdk.messages.body import MessageBody, decode_body, encode_body
from megacontext_sdk.messages.chat_format import ChatFormat
from megacontext_sdk.messages.content import MessageDraft, parse_content
from megacontext_sdk.messages.message import Message, load_messages, merge_parts
from megacontext_sdk.messages.roles import CONTINUES, ROLE_CODES, ROLES, Trust, default_trust

__all__ = [
    "CONTINUES",
    "ROLES",
    "ROLE_CODES",
    "ChatFormat",
    "Message",
    "MessageBody",
    "MessageDraft",
    "Trust",
    "decode_body",
    "default_trust",
    "encode_body",
    "load_messages",
    "merge_parts",
    "parse_content",
]
