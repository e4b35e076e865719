"""The controller: PolicyRollout resources into changes of weights, replica by replica."""
