# Foresight: each stage is a script, each gate a decision. `make help` lists what there is.

MODEL ?= tiny
DATA ?= shapes
SEED ?= 0
VAE ?= $(if $(filter tiny%,$(MODEL)),tiny-vae,ltx)
ENCODER ?= $(if $(filter tiny%,$(MODEL)),tiny-dino,dinov2-l)
ROOT ?=
ANNOTATIONS ?=
FORMAT ?= voc
LAUNCH ?=
STRICT ?=
SET ?=
POINTS ?= quarters
MEMORY ?=
FROZEN ?= first middle

# PY=python uses the environment one is in (Kaggle); otherwise .venv is made once, with the exact versions of requirements.txt.
ifeq ($(origin PY),undefined)
PY := .venv/bin/python
SETUP := .venv/.installed
endif
RUN := $(if $(LAUNCH),$(LAUNCH),$(PY))

M := $(notdir $(patsubst %/,%,$(MODEL)))
R := results/$(M)/$(DATA)
MOTION := results/$(M)/moving
V := results/$(notdir $(VAE))/$(DATA)
E := results/$(notdir $(ENCODER))/$(DATA)
CHECKPOINTS := $(addprefix results/tiny/tiny-,$(addsuffix .yaml,vae vlm semantic dino))

.DELETE_ON_ERROR:
.SECONDARY:
.PHONY: help gate1 test test-fast bench bench-gpu calibrate smoke lint tiny clean FORCE

help:  ## this list, with the defaults in force
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 20
	@echo
	@echo "  MODEL=$(MODEL) DATA=$(DATA) SEED=$(SEED) VAE=$(VAE) ENCODER=$(ENCODER) POINTS=$(POINTS) MEMORY=$(MEMORY) FROZEN="$(FROZEN)" LAUNCH=$(LAUNCH) STRICT=$(STRICT) SET=$(SET)"
	@echo "  own pictures with boxes: DATA=name ROOT=folder FORMAT=voc|csv|coco ANNOTATIONS=file-or-folder"

# ---- set-up, once

.venv/.installed: requirements.txt
	test -x .venv/bin/python || python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# ---- data. Scripts are order-only here and for extraction: what they wrote is costly, and is not thrown away for an edit.

ifneq ($(ROOT),)
data/$(DATA)/index.yaml: | data.py $(SETUP)
	$(PY) data.py boxes --root $(ROOT) --format $(FORMAT) $(if $(ANNOTATIONS),--annotations $(ANNOTATIONS)) --out $(@D) --seed $(SEED) --preview
endif
data/moving-%/index.yaml: | data.py $(SETUP)
	$(PY) data.py moving --freeze $* --out $(@D) --seed $(SEED) --preview
data/%/index.yaml: | data.py $(SETUP)
	$(PY) data.py $* --out $(@D) --seed $(SEED) --preview

# ---- features: results/<model>/<data>/features, and the same network untrained

define FEATURES
results/$(notdir $(patsubst %/,%,$(1)))/$(2)/features/index.yaml: data/$(2)/index.yaml | extract.py $(SETUP)
	$(RUN) extract.py --model $(1) --data data/$(2) --points $(3) $(if $(MEMORY),--max-memory $(MEMORY)) --seed $(SEED) --out $$(@D)
results/$(notdir $(patsubst %/,%,$(1)))/$(2)/features-random/index.yaml: data/$(2)/index.yaml | extract.py $(SETUP)
	$(RUN) extract.py --model $(1) --data data/$(2) --points $(3) $(if $(MEMORY),--max-memory $(MEMORY)) --seed $(SEED) --random-init --out $$(@D)
endef
$(foreach m,$(sort $(MODEL) $(VAE) $(ENCODER)),$(foreach d,$(sort $(DATA) moving $(FROZEN:%=moving-%)),$(eval $(call FEATURES,$(m),$(d),$(if $(filter $(m),$(MODEL)),$(POINTS),quarters)))))  # POINTS are the model's own

# ---- stages

results/%/moving/probe.yaml: results/%/moving/features/index.yaml results/%/moving/features-random/index.yaml $(foreach f,$(FROZEN),results/%/moving-$(f)/features/index.yaml) probe.py common.py
	$(PY) probe.py --features results/$*/moving/features --random results/$*/moving/features-random \
		$(if $(FROZEN),--frozen $(foreach f,$(FROZEN),results/$*/moving-$(f)/features)) --seed $(SEED) --out $@

results/%/probe.yaml: results/%/features/index.yaml results/%/features-random/index.yaml probe.py common.py
	$(PY) probe.py --features results/$*/features --random results/$*/features-random --seed $(SEED) --out $@

$(R)/align.yaml: $(R)/features/index.yaml $(R)/features-random/index.yaml $(V)/features/index.yaml align.py common.py
	$(PY) align.py --features $(R)/features --random $(R)/features-random --target $(V)/features --seed $(SEED) --out $@

$(R)/adapt-latents.yaml: $(R)/align.yaml adapt.py common.py
	$(PY) adapt.py --features $(R)/features --random $(R)/features-random --latents $(V)/features --align $(R)/align.yaml --vae $(VAE) --judge $(ENCODER) --seed $(SEED) --out $@

# ---- gates

$(R)/gate1.yaml: $(R)/probe.yaml $(MOTION)/probe.yaml $(R)/align.yaml $(R)/adapt-latents.yaml $(E)/probe.yaml verify.py common.py $(R)/.set
	$(PY) verify.py --gate 1 --results $(R) --motion $(MOTION) --encoder $(E) $(if $(wildcard results/qwen2.5-vl-7b/$(DATA)),--reference results/qwen2.5-vl-7b/$(DATA)) \
		--set "$(SET)" --seed $(SEED) --out $@ > /dev/null

$(R)/.set: FORCE  # changes only when SET does, so that a new threshold judges again and computes nothing
	@mkdir -p $(@D); echo '$(SET)' | cmp -s - $@ || echo '$(SET)' > $@

gate1: $(R)/gate1.yaml  ## do the latents suffice? every stage for MODEL on DATA, then the verdict
	@$(PY) verify.py --print $< $(if $(STRICT),--strict)

# ---- the embedded default

data/tiny-shapes/index.yaml: | data.py $(SETUP)
	$(PY) data.py shapes --size 96 --n 12000 --seed 1001 --out $(@D)
data/tiny-moving/index.yaml: | data.py $(SETUP)
	$(PY) data.py moving --n 3000 --seed 1001 --out $(@D)

tiny: data/tiny-shapes/index.yaml data/tiny-moving/index.yaml  ## train the embedded default again from nothing (at most 2 hours on 2 cores; resumes)
	$(PY) tiny.py --seed $(SEED)

# ---- checks

test: $(SETUP)  ## set up, then every test
	$(PY) -m pytest -q tests
test-fast: $(SETUP)  ## the tests that take about a minute
	$(PY) -m pytest -q tests -m "not slow"
bench: $(SETUP)  ## speed as ratios against named peers, all in one run: results/bench.yaml
	$(PY) tests/bench.py
bench-gpu: $(SETUP)  ## the same on a CUDA device with networks of full size: results/bench-gpu.yaml (needs 64 GB of disk)
	$(PY) tests/bench_gpu.py
calibrate: $(SETUP)  ## how often gate 1 itself is wrong, on planted worlds: results/calibrate.yaml and .png (about 10 minutes)
	$(PY) tests/calibrate.py
smoke: $(SETUP)  ## every stage on made-up input
	for stage in data extract probe align adapt verify; do $(PY) $$stage.py --smoke || exit 1; done
lint: $(SETUP)  ## ruff
	$(PY) -m ruff check .
clean:  ## remove data/ and results that are not part of the repository
	rm -rf data $(filter-out results/tiny results/bench.yaml results/bench-gpu.yaml results/calibrate.yaml results/calibrate.png,$(wildcard results/*)) $(filter-out results/tiny/checkpoints,$(filter-out %.yaml,$(wildcard results/tiny/*)))
FORCE:
