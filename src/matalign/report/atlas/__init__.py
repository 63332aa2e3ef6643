"""The atlas: one page that shows the map of the aligned space. `layout` places, `build` gathers and writes the page."""
