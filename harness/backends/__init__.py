"""One file per engine. A file named like the engine declares it without importing it; loading imports it."""
