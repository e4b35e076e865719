"""What the policy and the critique service share: a language model in a host, served, operated and swapped."""
