"""Scale sources, one per file. A `ScaleSource` defined here is found by itself."""
