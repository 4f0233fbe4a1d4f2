import { describe, expect, it } from 'vitest';
import {
  isFalsey,
  isTruthy,
  negatedEnv,
  OptionTable,
  type Option,
} from '../../../src/config/option-table.js';
import { recordedHelp, recordedTable as table } from './recorded-help.js';

function option(spelling: string): Option {
  const found = table.find(spelling);
  if (found === undefined) throw new Error(`${spelling} is not in the table`);
  return found.option;
}

describe('the option table of a recorded help', () => {
  it('has one option for each line that begins with a spelling', () => {
    const heads = recordedHelp.split('\n').filter((line) => /^-+[a-zA-Z]/.test(line));
    expect(heads.length).toBeGreaterThan(200);
    expect(table.options.map(({ firstName }) => firstName)).toEqual(
      heads.map((line) => line.split(/[ ,]/, 1)[0]),
    );
  });

  it('has the environment name of every option that the help gives one', () => {
    const printed = [...recordedHelp.matchAll(/\(env: (\w+)\)/g)].map(([, name]) => name);
    expect(printed.length).toBeGreaterThan(100);
    expect(table.options.flatMap(({ env }) => env ?? [])).toEqual(printed);
  });

  it('reads every spelling of an option with a value, and names it by the last one', () => {
    expect(option('-ngl')).toEqual({
      key: 'n-gpu-layers',
      firstName: '-ngl',
      positive: ['-ngl', '--gpu-layers', '--n-gpu-layers'],
      negative: [],
      env: 'LLAMA_ARG_N_GPU_LAYERS',
      valueCount: 1,
      presetOnly: false,
      description:
        "max. number of layers to store in VRAM, either an exact number, 'auto', or 'all' (default: auto)",
    });
  });

  it.each([
    ['--kv-offload', ['-kvo', '--kv-offload'], ['-nkvo', '--no-kv-offload']],
    ['--repack', ['--repack'], ['-nr', '--no-repack']],
    ['--cont-batching', ['-cb', '--cont-batching'], ['-nocb', '--no-cont-batching']],
    ['--agent', ['-ag', '--agent'], ['-no-ag', '--no-agent']],
    ['--mmproj-auto', ['--mmproj-auto'], ['--no-mmproj', '--no-mmproj-auto']],
    ['--ui', ['--ui', '--webui'], ['--no-ui', '--no-webui']],
    ['--slots', ['--slots'], ['--no-slots']],
  ])('finds where the negatives of %s start', (spelling, positive, negative) => {
    expect(option(spelling)).toMatchObject({ positive, negative, valueCount: 0 });
  });

  it.each([
    ['--no-host', ['--no-host']],
    ['--predict', ['-n', '--predict', '--n-predict']],
    ['--numa', ['--numa']],
    ['--metrics', ['--metrics']],
  ])('takes no name of %s for a negative one', (spelling, positive) => {
    expect(option(spelling)).toMatchObject({ positive, negative: [] });
  });

  it.each([
    ['--metrics', 0],
    ['--kv-offload', 0],
    ['--ctx-size', 1],
    ['--override-tensor', 1],
    ['--docker-repo', 1],
    ['--tensor-split', 1],
    ['--cpu-strict', 1],
    ['--spec-type', 1],
    ['--control-vector-scaled', 1],
    ['--control-vector-layer-range', 2],
  ])('counts the values of %s as %i', (spelling, valueCount) => {
    expect(option(spelling).valueCount).toBe(valueCount);
  });

  it('joins wrapped descriptions and keeps the environment name out of them', () => {
    expect(option('--port').description).toBe('port to listen (default: 8080)');
    expect(option('--models-preset').description).toBe(
      'path to INI file containing model presets for the router server (default: disabled)',
    );
    expect(option('--spec-type').env).toBe('LLAMA_ARG_SPEC_TYPE');
  });

  it('finds an option by each of its spellings and says which of them turn it off', () => {
    for (const known of table.options) {
      for (const name of known.positive) expect(table.find(name)).toEqual({ option: known, negated: false });
      for (const name of known.negative) expect(table.find(name)).toEqual({ option: known, negated: true });
    }
  });

  it('reads _ as - in long spellings only', () => {
    expect(table.find('--ctx_size')?.option.key).toBe('ctx-size');
    expect(table.find('-no_kvu')).toBeUndefined();
  });

  it('does not find a spelling without its dashes', () => {
    expect(table.find('ctx-size')).toBeUndefined();
  });
});

describe('keys of a presets file', () => {
  it.each([
    ['c', 'ctx-size', false],
    ['ctx-size', 'ctx-size', false],
    ['LLAMA_ARG_CTX_SIZE', 'ctx-size', false],
    ['no-slots', 'slots', true],
    ['nkvo', 'kv-offload', true],
    ['no-host', 'no-host', false],
    ['LLAMA_ARG_NO_KV_OFFLOAD', 'kv-offload', false],
    ['HF_TOKEN', 'hf-token', false],
    ['load-on-startup', 'load-on-startup', false],
    ['stop-timeout', 'stop-timeout', false],
    ['dedup-cache-models', 'dedup-cache-models', false],
  ])('knows %s as %s', (key, canonical, negated) => {
    expect(table.findKey(key)).toMatchObject({ option: { key: canonical }, negated });
  });

  it.each(['ctx_size', '--ctx-size', 'CTX-SIZE', 'LLAMA_ARG_NO_CTX_SIZE', 'pin', ''])(
    'does not know %j',
    (key) => {
      expect(table.findKey(key)).toBeUndefined();
    },
  );

  it('marks the keys that are no arguments', () => {
    expect(table.findKey('stop-timeout')?.option.presetOnly).toBe(true);
    expect(table.find('--stop-timeout')).toBeUndefined();
    expect(table.find('stop-timeout')).toBeUndefined();
  });
});

describe('the help of other binaries', () => {
  it('is read with other columns, carriage returns and log lines between the sections', () => {
    const { options } = OptionTable.parse(
      [
        'load_backend: loaded CPU backend from /opt/libggml-cpu.so',
        '----- common params -----',
        '',
        '-x, --extra-thing N   does a thing, -y or not',
        '                      (env: LLAMA_ARG_EXTRA)',
        '----- other params -----',
        '    not part of an option',
        '-nz,   --new-zeal, --no-new-zeal      with zeal',
      ].join('\r\n'),
    );
    expect(options).toEqual([
      {
        key: 'extra-thing',
        firstName: '-x',
        positive: ['-x', '--extra-thing'],
        negative: [],
        env: 'LLAMA_ARG_EXTRA',
        valueCount: 1,
        presetOnly: false,
        description: 'does a thing, -y or not',
      },
      {
        key: 'new-zeal',
        firstName: '-nz',
        positive: ['-nz', '--new-zeal'],
        negative: ['--no-new-zeal'],
        env: undefined,
        valueCount: 0,
        presetOnly: false,
        description: 'with zeal',
      },
    ]);
  });

  it('is an empty table when it lists nothing', () => {
    expect(OptionTable.parse('usage: true [ignored command line arguments]\n').options).toEqual([]);
  });
});

describe('native truth', () => {
  it('knows four words each way and minds their case', () => {
    expect(['on', 'enabled', 'true', '1'].every(isTruthy)).toBe(true);
    expect(['off', 'disabled', 'false', '0'].every(isFalsey)).toBe(true);
    for (const neither of ['', 'yes', 'no', 'True', 'OFF', '2', ' 1']) {
      expect([isTruthy(neither), isFalsey(neither)]).toEqual([false, false]);
    }
  });

  it('turns an option off by LLAMA_ARG_NO_ only where it has a negative spelling', () => {
    expect(negatedEnv(option('--models-autoload'))).toBe('LLAMA_ARG_NO_MODELS_AUTOLOAD');
    expect(negatedEnv(option('--no-host'))).toBeUndefined();
    expect(negatedEnv(option('--slots'))).toBe('LLAMA_ARG_NO_ENDPOINT_SLOTS');
    expect(negatedEnv(option('--hf-token'))).toBeUndefined();
  });
});

describe('the nearest spelling', () => {
  it.each([
    ['--ctx_sise', '--ctx-size'],
    ['--model-dir', '--models-dir'],
    ['-nlg', '-ngl'],
    ['--ngl', '-ngl'],
    ['--no-slot', '--no-slots'],
    ['temprature', 'temperature'],
    ['LLAMA_ARG_CTX_SIZ', 'LLAMA_ARG_CTX_SIZE'],
  ])('to %s is %s', (text, expected) => {
    expect(table.nearest(text)).toBe(expected);
  });

  it.each(['-z', '--completely-different-thing', ''])('to %j is none', (text) => {
    expect(table.nearest(text)).toBeUndefined();
  });

  it('is looked for among the given candidates', () => {
    expect(table.nearest('--queu-max', ['--queue-max', '--queue-timeout'])).toBe('--queue-max');
  });
});
