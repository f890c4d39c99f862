"""The pages. Each module is one page and is found by being here; there is no list to add it to.

    PATH = "/trend"                      # its address
    TITLE = "Trend"                      # in English: a key of the catalogs (see dashboard.shell.titles)
    ORDER = 4                            # its place in the navigation; 0 or less: not in the navigation

    @dataclass(frozen=True, slots=True)
    class State:                         # its query string (see dashboard.url); a field `filter: str = ""` makes the
        filter: str = ""                 # shell show the filters-as-text box, which writes it

    def layout(context: Context, state: State) -> Component: ...
    def export(context: Context, state: State, form: str) -> str: ...   # optional, with EXPORTS = ("csv", "md"): a
                                         # text or the path of a file, served as /export<PATH>.<form>?<state>
    def register(app: Dash, source: Source) -> None: ...                # optional: callbacks of its own

A layout may raise UsageError (a filter that cannot be read, a run that does not exist): the shell shows its text as a
designed message above the page's frame. Other exceptions are faults.
"""
