"""The parts of `make book`: execute the chapters, stage the sources, check the pages."""
