"""The report page: one HTML file per run with slices, numbers and a viewer, usable offline.

  viewer.py   the code of the viewer, NiiVue: downloaded once, not part of the project
  slices.py   three orthogonal slices as SVG
  scan.py     a volume and its label maps, small enough for a browser
  case.py     the data of one case
  collect.py  the cases of a run, their names, and the size limit of a page
  plots.py    distributions of scores
  parts.py    tables and other parts in HTML
  write.py    the whole page in one file, with page.css and page.js
"""
