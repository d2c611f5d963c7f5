"""Selection rules: each kind is a module with its parameters, its decision and its words; a rule is an instance."""
