"""What Python's kernel shows beside what IPython shows: the data of tables and of charts; and the variables of one
execution."""

import json
import os

CELLS_MAX = 1_000_000


def beside(form):
    """Has what fails be nothing: what is shown beside it matters more."""

    def formed(value):
        try:
            return form(value)
        except Exception:
            return None

    return formed


@beside
def table(frame):
    """The columns of a table, by name."""
    if frame.size > CELLS_MAX:
        return None
    split = json.loads(frame.to_json(orient="split", date_format="iso", default_handler=str))
    columns = [" ".join(map(str, name)) if isinstance(name, list) else str(name) for name in split["columns"]]
    return {name: [row[at] for row in split["data"]] for at, name in enumerate(columns)}


@beside
def chart(figure):
    """What a figure shows, as far as it can be told from it."""
    from e2b_charts import chart_figure_to_dict

    try:
        found = json.loads(json.dumps(chart_figure_to_dict(figure), default=plain))
    except Exception:
        # Such as a plot of one box, which it takes for one that lies.
        found = {"type": "unknown", "title": figure.get_suptitle() or None, "elements": []}
    return found or None


def plain(value):
    """What JSON has no words for."""
    for name in ("isoformat", "item", "tolist"):
        if hasattr(value, name):
            return getattr(value, name)()
    return str(value)


def load():
    """Has IPython show them too."""
    from IPython import get_ipython
    from IPython.core.formatters import BaseFormatter
    from traitlets import ObjectName, Unicode

    class Formatter(BaseFormatter):
        _return_type = dict

    class Table(Formatter):
        format_type = Unicode("e2b/data")
        print_method = ObjectName("_repr_e2b_data_")

    class Chart(Formatter):
        format_type = Unicode("e2b/chart")
        print_method = ObjectName("_repr_e2b_chart_")

        def pop(self, typ, default=None):
            # As matplotlib begins, figures are taken out of every formatter, to be put into its own.
            return default

    display = get_ipython().display_formatter
    tables, charts = Table(parent=display), Chart(parent=display)
    # Newer ones say that they are of `pandas` itself.
    for module in ("pandas", "pandas.core.frame"):
        tables.for_type_by_name(module, "DataFrame", table)
    charts.for_type_by_name("matplotlib.figure", "Figure", chart)
    display.formatters[tables.format_type] = tables
    display.formatters[charts.format_type] = charts


_before = {}


def enter(text):
    """Sets variables for what comes next."""
    for name, value in json.loads(text).items():
        _before.setdefault(name, os.environ.get(name))
        os.environ[name] = value


def leave():
    """Has them be what they were."""
    for name, value in _before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _before.clear()
