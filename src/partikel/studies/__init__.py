"""What is done with the library: theory checked, maps, catalogues, the papers' items."""
