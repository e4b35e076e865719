"""REST routes: thin converters over the data plane, one file per resource."""
