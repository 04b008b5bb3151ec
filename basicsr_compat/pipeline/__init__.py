"""What `basicsr train`, `test` and `check` run on, beyond what a host project meets."""
