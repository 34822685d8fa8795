"""The command line: ``repro-callbacks demo | run | verify | compare | audit | study | record | sample``."""
