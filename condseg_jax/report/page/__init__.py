"""The page: one HTML file per run, with pictures, numbers and a viewer, that needs no network.

  viewer.py   the code of the viewer, NiiVue: fetched once, never part of the project
  slices.py   three orthogonal slices as drawings
  scan.py     a volume and its label maps, small enough for a browser
  case.py     one case as plain data
  collect.py  the cases of a run, their names, and how much of them a page can hold
  plots.py    distributions of scores
  parts.py    tables and other parts in HTML
  write.py    all of it in one file, with page.css and page.js
"""
