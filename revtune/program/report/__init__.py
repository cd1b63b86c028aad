"""`revtune report`: one page that shows runs, contests and studies side by side, with nothing fetched from elsewhere.

A `Story` is what is told of one folder. `text`, `task`, `translation`, `contest`, `repeat` and `output_dropout` read
them from folders of their kinds, `charts` and `page` make a page of them; begin with `report`.
"""
