"""The largest value of a run among its neighbours, over tokens and dims."""
