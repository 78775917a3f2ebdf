"""Charts as inline SVG: text stays text, colours follow the reader's light or dark page."""
