"""Pictures in HTML, as a browser reads them: the alternative text and the pixels."""

import base64
import io
from html.parser import HTMLParser

from matplotlib.image import imread


class _Images(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.found.append(dict(attrs))


def images(page):
    """The attributes of every <img> of an HTML page."""
    parser = _Images()
    parser.feed(page)
    return parser.found


def read_picture(output):
    """(alt, pixels (height, width, channels)) of the one picture that a bundle of mime types shows."""
    assert not any(kind.startswith("image/") for kind in output)  # pages would show it without its description
    (image,) = images(output["text/html"])
    head, _, data = image["src"].partition(",")
    assert head == "data:image/png;base64"
    return image["alt"], imread(io.BytesIO(base64.b64decode(data)))
