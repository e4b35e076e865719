"""What every gRPC server of this project does the same way: health, reflection, status codes, drain."""
