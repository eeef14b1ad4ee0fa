"""The night watch: finishes what a crash left half done."""
