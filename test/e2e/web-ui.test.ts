import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Page } from 'playwright-core';
import { describe, expect, it } from 'vitest';
import { findChromium, freshPage } from '../helpers/browser.js';
import { eventually } from '../helpers/eventually.js';
import { counting, endless, sayingItsName, writeModels } from '../helpers/known-answer-models.js';
import { startRealSupervisor } from '../helpers/real-llama-server.js';
import { busySlots, modelEntry } from '../helpers/supervisor-client.js';

const { path: chromium, obstacle } = findChromium();

/** Longest wait for something to show in the page. Milliseconds. */
const showMs = 20_000;

/** The UI asks whether tools are there, and its browser says that they are not. */
const expectedFaults = /status of 403/;

/** Opens the UI; waits until it has its models. */
async function openUi(page: Page, url: string): Promise<void> {
  page.setDefaultTimeout(showMs);
  await page.goto(`${url}/`);
  await page.getByRole('textbox', { name: 'Type a message' }).waitFor();
}

/** The button that names the chosen model and opens the list. */
function modelButton(page: Page, model: string) {
  return page.getByRole('main').getByRole('button', { name: model, exact: true }).last();
}

async function choose(page: Page, from: string, model: string): Promise<void> {
  await modelButton(page, from).click();
  await page.getByRole('option', { name: new RegExp(`^${model}`) }).click();
  await page.getByText(`Model loaded: ${model}`).waitFor();
}

async function say(page: Page, text: string): Promise<void> {
  await page.getByRole('textbox', { name: 'Type a message' }).fill(text);
  await page.getByRole('button', { name: 'Send' }).click();
}

function answers(page: Page) {
  return page.getByRole('group', { name: 'Assistant message with actions' });
}

/** For a person to look at, where one asks for them. */
async function screenshot(page: Page, name: string): Promise<void> {
  const directory = process.env['SCREENSHOTS'];
  if (directory === undefined) return;
  mkdirSync(directory, { recursive: true });
  await page.screenshot({ path: join(directory, `${name}.png`) });
}

describe.skipIf(chromium === undefined)(`the web UI in Chromium${obstacle && ` (${obstacle})`}`, () => {
  it('lists models with their states, loads one, chats with two, and switches between them', async () => {
    const dir = await writeModels({ alpha: sayingItsName('alpha'), beta: sayingItsName('beta') });
    const { url } = await startRealSupervisor({
      args: ['--models-dir', dir],
      // Two seconds of loading are there to be seen.
      env: { LLAMA_SERVER_DEBUG_FAKE_TIMING: '1' },
    });
    const { page, faults } = await freshPage();
    await openUi(page, url);
    await modelButton(page, 'alpha').click();
    const options = page.getByRole('option');
    await expect.poll(() => options.count()).toBe(2);
    await screenshot(page, 'models');
    await page.getByRole('option', { name: /^beta/ }).click();
    await eventually('beta loads', async () => (await modelEntry(url, 'beta')).status.value === 'loading');
    await screenshot(page, 'loading');
    await page.getByText('Model loaded: beta').waitFor();
    expect((await modelEntry(url, 'beta')).status.value).toBe('loaded');

    await say(page, 'Who are you?');
    await answers(page).getByText('I am beta.').waitFor();
    await choose(page, 'beta', 'alpha');
    await say(page, 'And you?');
    await answers(page).getByText('I am alpha.').waitFor();
    expect(await answers(page).count()).toBe(2);
    await screenshot(page, 'two-models');
    expect(faults.filter((fault) => !expectedFaults.test(fault))).toEqual([]);
  });

  it('stops an answer, and the model works no more', async () => {
    const dir = await writeModels({ talker: endless() });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir] });
    const { page } = await freshPage();
    await openUi(page, url);
    await say(page, 'Talk!');
    await answers(page).getByText('lap-3').first().waitFor();
    expect(await busySlots(url, 'talker')).toBe(1);
    await page.getByRole('button', { name: 'Stop', exact: true }).click();
    await eventually('an idle child', async () => (await busySlots(url, 'talker')) === 0);
    await page.getByRole('button', { name: 'Send' }).waitFor();
    await eventually('no request', async () => (await modelEntry(url, 'talker')).in_flight === 0);
  });

  it('that is loaded again in the middle of an answer goes on with it to its end', async () => {
    const dir = await writeModels({ counter: { ...counting(3_000), contextLength: 8192 } });
    const { url } = await startRealSupervisor({ args: ['--models-dir', dir, '--ctx-size', '8192'] });
    const { page } = await freshPage();
    await openUi(page, url);
    await say(page, 'Count!');
    await answers(page)
      .getByText(/\b50 51\b/)
      .waitFor();
    await page.reload();
    await screenshot(page, 'reloaded');
    await answers(page)
      .getByText(/\b3000$/)
      .waitFor({ timeout: 60_000 });
    const text = await answers(page)
      .getByText(/\b3000$/)
      .innerText();
    expect(text.trim().split(/\s+/)).toEqual(Array.from({ length: 3_000 }, (_, n) => String(n + 1)));
    expect((await modelEntry(url, 'counter')).in_flight).toBe(0);
  });

  it('works below a path, and asks for the API key', async () => {
    const dir = await writeModels({ alpha: sayingItsName('alpha') });
    const { url } = await startRealSupervisor({
      args: ['--models-dir', dir, '--api-prefix', '/llama', '--api-key', 'secret'],
    });
    const { page } = await freshPage();
    page.setDefaultTimeout(showMs);
    await page.goto(`${url}/`);
    expect(new URL(page.url()).pathname).toBe('/llama/');
    await page.getByRole('button', { name: 'Enter API Key' }).click();
    await page.getByRole('textbox', { name: 'API Key' }).fill('secret');
    await screenshot(page, 'key');
    await page.getByRole('button', { name: 'Save & Retry' }).click();
    await page.getByRole('textbox', { name: 'Type a message' }).waitFor();
    await say(page, 'Who are you?');
    await answers(page).getByText('I am alpha.').waitFor();
  });
});
