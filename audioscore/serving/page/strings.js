// What the page says, in English and Chinese, and which of the two is on.

const TEXTS = {
  en: {
    title: "Singing score",
    lead: "Sing, or give a recording of singing, and see where it stands on the raters' scale of 50 to 99.",
    language: "中文",
    languageLabel: "切换到中文",
    token: "Access token (ask whoever runs this service)",
    take: "Take {number}",
    record: "Record",
    stop: "Stop",
    choose: "Choose a file",
    drop: "or drop one here",
    clear: "Clear",
    again: "Try again",
    cancel: "Cancel",
    recording: "Recording: {time}",
    scoring: "Scoring…",
    score: "Score",
    interval: "{level} % interval: {low} to {high}",
    band: "In the band {low} to {high}.",
    below: "Below {low}, the lower end of the scale in use.",
    above: "Above {high}, the upper end of the scale in use.",
    scale: "{score} on a scale from {from} to {to}; interval from {low} to {high}.",
    chart: "Score over time: lowest {low}, highest {high}. The dashed line is the whole recording's score.",
    caption: "Score over time, each of about 10 seconds. Dashed: the whole recording.",
    moments: "Score over time, as a table",
    span: "Time",
    undrawn: "This browser cannot play or draw this file.",
    comparison: "Side by side",
    higher: "Take {better} is {points} points above take {worse}.",
    same: "Both takes have the same score.",
    overlap: "The intervals overlap: the difference may be within the error of the scores.",
    apart: "The intervals do not overlap.",
    privacy: "Only the recording is sent, to this service, which scores it and keeps no copy.",
    model: "Model: {name}{version}, plan {plan}. One recording: at most {minutes} minutes, {megabytes} MB.",
    loading: "The service is starting: its model is being loaded.",
    unreachable: "The service does not answer. Check the connection.",
    noMicrophone: "No microphone was found. Connect one, or choose a file.",
    denied: "The browser may not use the microphone. Allow it in the site's settings, or choose a file.",
    insecure: "Browsers record only on pages opened over https or on this computer. Choose a file.",
    notRecorded: "The microphone could not be recorded ({reason}). Choose a file.",
    status400: "The service did not understand the upload. Reload the page and try again.",
    status401: "The access token is missing or wrong. Enter it above and try again.",
    status408: "The upload was too slow. Try again, or with a shorter recording.",
    status413: "The recording is too large: at most {megabytes} MB are taken. Choose a shorter one.",
    status429: "The service is busy. Try again in {seconds} seconds.",
    status503: "The service is starting or stopping. Try again in a moment.",
    statusOther: "The service failed ({status}). Try again later.",
  },
  zh: {
    title: "歌声评分",
    lead: "唱一段，或上传一段演唱录音，看看它在人工标分 50–99 分的尺度上能得多少分。",
    language: "English",
    languageLabel: "Switch to English",
    token: "访问令牌（请向服务管理员索取）",
    take: "录音 {number}",
    record: "开始录音",
    stop: "停止",
    choose: "选择文件",
    drop: "或将录音文件拖到这里",
    clear: "清除",
    again: "重试",
    cancel: "取消",
    recording: "正在录音：{time}",
    scoring: "正在打分……",
    score: "分数",
    interval: "{level}% 区间：{low} 至 {high}",
    band: "所在分数段：{low} 至 {high}。",
    below: "低于常用分数范围的下限 {low} 分。",
    above: "高于常用分数范围的上限 {high} 分。",
    scale: "{score} 分（分数范围 {from} 至 {to}），区间 {low} 至 {high}。",
    chart: "分数随时间的变化：最低 {low}，最高 {high}。虚线为整段录音的分数。",
    caption: "分数随时间的变化，每个点约对应 10 秒。虚线：整段录音。",
    moments: "各时间段的分数（表格）",
    span: "时间",
    undrawn: "浏览器无法播放此文件，也无法显示波形。",
    comparison: "两段对比",
    higher: "录音 {better} 比录音 {worse} 高 {points} 分。",
    same: "两段录音分数相同。",
    overlap: "两个区间有重叠：差别可能在打分误差之内。",
    apart: "两个区间没有重叠。",
    privacy: "页面只上传录音本身；服务打分后不保留录音。",
    model: "模型：{name}{version}，方案 {plan}。单段录音最长 {minutes} 分钟，最大 {megabytes} MB。",
    loading: "服务正在启动，模型加载中。",
    unreachable: "服务没有响应，请检查网络连接。",
    noMicrophone: "没有找到麦克风。请接入麦克风，或选择文件。",
    denied: "浏览器没有麦克风权限。请在网站设置中允许，或选择文件。",
    insecure: "浏览器只允许在 https 页面或本机页面上录音。请选择文件。",
    notRecorded: "无法使用麦克风录音（{reason}）。请选择文件。",
    status400: "服务无法识别上传的内容。请刷新页面后重试。",
    status401: "访问令牌缺失或不正确。请在上方填写后重试。",
    status408: "上传太慢。请重试，或换一段较短的录音。",
    status413: "录音太大：最大 {megabytes} MB。请换一段较短的录音。",
    status429: "服务繁忙，请在 {seconds} 秒后重试。",
    status503: "服务正在启动或停止，请稍后重试。",
    statusOther: "服务出错（{status}），请稍后重试。",
  },
};

const KEPT = "audioscore-language";
let current = remembered() ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

export function language() {
  return current;
}

/** Speak the other language from now on; remembered by this browser where it may. */
export function switchLanguage() {
  current = current === "zh" ? "en" : "zh";
  try {
    localStorage.setItem(KEPT, current);
  } catch {
    // A browser that keeps nothing follows its own language the next time.
  }
}

/** A text in the language that is on, with `{names}` filled in. */
export function text(key, values = {}) {
  return TEXTS[current][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Fill every element under `root` that names its text in `data-text`. */
export function fillTexts(root) {
  for (const element of root.querySelectorAll("[data-text]")) {
    element.textContent = text(element.dataset.text);
  }
}

/** 75.4 -> "1:15" */
export function clock(seconds) {
  const whole = Math.floor(seconds + 1e-6);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function remembered() {
  try {
    const kept = localStorage.getItem(KEPT);
    return kept in TEXTS ? kept : null;
  } catch {
    return null;
  }
}
