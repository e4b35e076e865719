"""`anyloop replay`: learn again from what the log holds, beside the live loop; and put dead letters back."""
