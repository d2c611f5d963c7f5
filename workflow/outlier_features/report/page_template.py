"""What the report and the pages of single figures share: how a template is rendered, and how data get into it."""

import base64
import hashlib
import json
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from outlier_features.visible_text import visible

PLOTLY = "plotly-cartesian.min.js"  # beside the templates


def page_environment(folder: Path) -> Environment:
    """Templates from `folder`; what they are given is text and escaped."""
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": visible, "unbroken": unbroken, "json_script": json_script, "script_hash": script_hash,
    }  # fmt: skip
    return environment


def json_script(figure: go.Figure) -> Markup:
    """A figure as JSON that no parser of HTML or JavaScript can take for anything else."""
    text = json.dumps(json.loads(figure.to_json(engine="json")), ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def script_hash(text: str) -> str:
    """As the page's Content-Security-Policy names a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def unbroken(text: str) -> str:
    """A number and its unit on one line."""
    return text.replace(" %", "\u00a0%").replace("x = ", "x\u00a0=\u00a0").replace("|x| >= ", "|x|\u00a0>=\u00a0")
